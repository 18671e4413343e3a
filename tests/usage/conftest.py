"""What the tests of usage share."""

from pathlib import Path
from uuid import uuid4

import pytest

from tests.databases import Postgres
from tests.usage.books import Books


@pytest.fixture
def books(postgres: Postgres, tmp_path: Path) -> Books:
    """A database with its tables, for relays that a test starts."""
    made = Books(postgres.create(f"books_{uuid4().hex[:8]}"), tmp_path)
    made.relay().manage("migrate", "--verbosity", "0")
    del made.relays[:]  # that one never serves
    return made
