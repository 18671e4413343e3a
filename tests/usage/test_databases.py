"""What the suite stands on: real databases, set up as in production."""

import os
from pathlib import Path

import psycopg
import pytest
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from lemcloud import environment
from relay.models import RelaySession
from tests.databases import Database, Postgres
from tests.usage.samples import START, uuid


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_sqlite_file_named_by_url_is_set_up_like_the_default_one(
    database: Database, tmp_path: Path
) -> None:
    default = environment.read({}, tmp_path).database
    named = environment.read({"DATABASE_URL": database.url}, tmp_path).database
    assert named["OPTIONS"] == default["OPTIONS"]
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        # FULL: what is committed survives a power cut.
        assert cursor.execute("PRAGMA synchronous").fetchone() == (2,)


def test_postgresql_starts_where_its_user_may_not_look(
    monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    """As in a clone under /root: the server is copied to where it can run."""
    monkeypatch.setattr(Postgres, "_runs", lambda server: False)
    server = Postgres()
    try:
        server.start()
        psycopg.connect(server.url()).close()
        assert (server.folder / "server").exists() == (os.geteuid() == 0)
    finally:
        server.remove()
    assert not server.folder.exists()


@pytest.mark.parametrize("given", [{}, {"DATABASE_URL": "postgres://u@h/db"}])
def test_a_requests_connection_ends_with_it(given: dict[str, str], tmp_path: Path) -> None:
    """Under ASGI each request has a thread of its own, which would leave a kept one open."""
    assert environment.read(given, tmp_path).database.get("CONN_MAX_AGE", 0) == 0


def test_a_node_that_knows_only_the_first_columns_still_writes(database: Database) -> None:
    """While nodes are restarted one by one, those of the release before write to the new tables."""
    first = MigrationLoader(None).project_state(("relay", "0001_initial")).apps
    first.get_model("relay", "RelaySession")(
        session_uuid=uuid(1), session_id="room", started_at=START, waiting_seconds=1.5
    ).save(force_insert=True)
    row = RelaySession.objects.get()
    assert (row.session_id, row.waiting_seconds) == ("room", 1.5)
    assert (row.traffic, row.corrects_id, row.revision, row.note) == ([], None, 0, "")
