"""The list of faults: small changes of the code, each with the tests that have to fail by it.

They stand in the `.toml` files beside this module, one file for each part, as tables `[[mutant]]`:

- `promise`: what breaks, in a few words;
- `file`: what is changed, from the project's folder on;
- `old`, `new`: a text that stands in that file once, and what takes its place;
- `tests`: what is run, as pytest ids; at least one of them has to fail;
- `survives`: only of a fault that nothing catches, why it is let live.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One fault. `name` is that of its list and its number in it, from 1 on."""

    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    @property
    def problem(self) -> str:
        """Why it can't be put into the code as it is now; empty if it can."""
        path = ROOT / self.file
        if not path.is_file():
            return f"there is no {self.file}"
        count = path.read_text().count(self.old)
        if count != 1:
            return f"{self.old!r} stands in {self.file} {count} times, not once"
        if self.old == self.new:
            return "it changes nothing"
        if not self.tests:
            return "it names no test"
        missing = [test for test in self.tests if not (ROOT / test.partition("::")[0]).is_file()]
        return f"there is no {missing[0]}" if missing else ""


def read(folder: Path = FOLDER) -> Iterator[Mutant]:
    """All faults, list by list. Raises `TypeError` for one with a word too many or too few."""
    for path in sorted(folder.glob("*.toml")):
        tables = tomllib.loads(path.read_text())["mutant"]
        for number, table in enumerate(tables, start=1):
            yield Mutant(name=f"{path.stem}-{number}", **{**table, "tests": tuple(table["tests"])})


def turn(mutants: list[Mutant], size: int, number: int) -> list[Mutant]:
    """`size` of `mutants`, others with each `number`; all have had their turn after `len / size` numbers."""
    start = number * size % max(1, len(mutants))
    return (mutants + mutants)[start : start + min(size, len(mutants))]
