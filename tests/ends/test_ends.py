"""Ends of busy sessions over each path: a few of each kind; `make ends` plays a hundred."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import Postgres
from tests.ends.kinds import KINDS, Kind
from tests.ends.rounds import PATHS, Path_, path, play

STEADY = [kind for kind in KINDS if not kind.environ and kind.name != "drain"]
ROUNDS = 2


@pytest.fixture(scope="module", params=PATHS)
def where(
    request: pytest.FixtureRequest,
    redis_url: str,
    postgres: Postgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path_]:
    """A relay on which one path is taken, shared by the kinds that leave it as it is."""
    with path(request.param, tmp_path_factory.mktemp("ends"), redis_url, postgres, ()) as made:
        yield made


@pytest.mark.parametrize("kind", STEADY, ids=lambda kind: kind.name)
def test_a_receiver_gets_an_exact_prefix_and_the_reason_however_its_session_ends(
    where: Path_, kind: Kind
) -> None:
    assert play(kind, where, ROUNDS).wrong == []


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in STEADY], ids=lambda kind: kind.name)
def test_so_it_does_where_the_relay_ends_it_by_itself(
    kind: Kind, name: str, redis_url: str, postgres: Postgres, tmp_path: Path
) -> None:
    with path(name, tmp_path / "relay", redis_url, postgres, kind.environ) as where:
        assert play(kind, where, ROUNDS + 1).wrong == []
