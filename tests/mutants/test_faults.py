"""The list of faults fits the code as it is."""

import pytest

from tests.mutants.faults import Mutant, read, turn

MUTANTS = list(read())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_fault_can_be_put_into_the_code(mutant: Mutant) -> None:
    assert not mutant.problem
    assert mutant.promise


def test_each_fault_is_another_one() -> None:
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_in_turns_each_fault_is_run() -> None:
    size = 20
    turns = -(-len(MUTANTS) // size)
    seen = {mutant.name for number in range(turns) for mutant in turn(MUTANTS, size, number)}
    assert seen == {mutant.name for mutant in MUTANTS}
    assert all(len(turn(MUTANTS, size, number)) == min(size, len(MUTANTS)) for number in range(turns))
