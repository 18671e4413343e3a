"""What the suite stands on: real databases, set up as in production."""

import os
from pathlib import Path

import psycopg
import pytest
from django.db import connection

from lemcloud import environment
from tests.databases import Database, Postgres


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_sqlite_file_named_by_url_is_set_up_like_the_default_one(
    database: Database, tmp_path: Path
) -> None:
    default = environment.read({}, tmp_path).database
    named = environment.read({"DATABASE_URL": database.url}, tmp_path).database
    assert named["OPTIONS"] == default["OPTIONS"]
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)


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
