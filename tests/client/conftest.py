"""A real relay for the client's tests."""

from collections.abc import Iterator

import pytest

from tests.relays import Relay, running


@pytest.fixture(scope="module")
def daphne(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """The relay as it ships: Daphne, spliced."""
    with running("daphne spliced", tmp_path_factory.mktemp("client")) as relay:
        yield relay
