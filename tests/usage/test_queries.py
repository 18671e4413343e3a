"""The indexes fit what the admin, the export and the settlement ask: no query reads every session.

What they really send is caught on its way to the database and explained there, with a million sessions on
PostgreSQL. SQLite's planner doesn't look at counts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client, override_settings

from relay.ledger.exports import export
from relay.ledger.writing import nodes
from relay.models import RelayLeg, RelayNode, RelaySession
from tests.databases import Postgres, as_default, sqlite_url
from tests.usage.samples import uuid

SESSIONS = {"sqlite": 2_000, "postgresql": 1_000_000}
START = datetime(2026, 1, 1, tzinfo=UTC)
LEGS = 10_000
SECONDS_BETWEEN = 10
"""So that a million sessions are four months."""

COUNT_OF_ALL = 'SELECT COUNT(*) AS "__count" FROM "relay_relaysession"'
"""For the page numbers under the admin's unfiltered list: no index makes that less than all."""


def reads_every_session(vendor: str, sql: str, plan: str) -> bool:
    """Whether a plan does; a walk along an index ends where the page does."""
    if vendor == "postgresql":
        return "Seq Scan on relay_relaysession" in plan
    walks = [line for line in plan.splitlines() if line.startswith("SCAN relay_relaysession")]
    return any("USING INDEX" not in walk or "LIMIT" not in sql for walk in walks)


@pytest.fixture(scope="module", params=list(SESSIONS))
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, django_db_blocker: Any
) -> Iterator[str]:
    """A database with many sessions of 1,000 accounts, of which a hundred live, on five nodes; its vendor."""
    vendor = request.param
    if vendor == "sqlite":
        url = sqlite_url(tmp_path_factory.mktemp("queries"))
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.create("queries")
    with django_db_blocker.unblock(), as_default(url), override_settings(ALLOWED_HOSTS=["testserver"]):
        call_command("migrate", verbosity=0)
        _fill(vendor, SESSIONS[vendor])
        yield vendor


def _fill(vendor: str, count: int) -> None:
    """Made by the database itself, in seconds; the indexes after the rows, as that is quicker."""
    if vendor == "postgresql":
        numbers, key = f"generate_series(1, {count}) AS n", "lpad(to_hex(n), 32, '0')::uuid"
        moment = f"timestamptz '2026-01-01Z' + n * interval '{SECONDS_BETWEEN} seconds'"
    else:
        numbers = (
            f"(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s LIMIT {count}) SELECT * FROM s)"  # noqa: S608
        )
        key = "printf('%032x', n)"
        moment = f"datetime('2026-01-01', (n * {SECONDS_BETWEEN}) || ' seconds')"
    live, node = f"n > {count - 100}", "'host:' || n % 5 || ':1'"
    session = {
        **{
            f.column: "NULL" if f.null else "0"
            for f in RelaySession._meta.concrete_fields
            if not f.has_db_default()
        },
        "session_uuid": key,
        "session_id": "'session-' || n",
        "account_id": "'account-' || n % 1000",
        "node": node,
        "started_at": moment,
        "paired_at": moment,
        "timestamp": f"CASE WHEN {live} THEN NULL ELSE {moment} END",
        "reason": f"CASE WHEN {live} THEN '' WHEN n % 100 = 0 THEN 'node_lost' ELSE 'peer_left' END",
    }
    leg = {
        **{f.column: "NULL" if f.null else "''" for f in RelayLeg._meta.concrete_fields},
        "leg_uuid": key,
        "session_uuid": key,
        "role": "'client'",
        "subject": "'subject-' || n",
        "node": node,
        "joined_at": moment,
        "left_at": session["timestamp"],
        **dict.fromkeys(("bytes_received", "frames_received"), "0"),
    }
    indexes = RelaySession._meta.indexes
    if vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET maintenance_work_mem = '256MB'")
    with connection.schema_editor() as editor:
        for index in indexes:
            editor.remove_index(RelaySession, index)
    with connection.cursor() as cursor:
        # Legs of the newest only: their table is asked by its keys.
        for table, values, first in (("relaysession", session, 0), ("relayleg", leg, count - LEGS)):
            cursor.execute(
                f"INSERT INTO relay_{table} ({', '.join(values)}) "  # noqa: S608
                f"SELECT {', '.join(values.values())} FROM {numbers} WHERE n > {first}"
            )
    with connection.schema_editor() as editor:
        for index in indexes:
            editor.add_index(RelaySession, index)
    for number in range(5):
        RelayNode.objects.create(node=f"host:{number}:1", place="here", beat_at=datetime.now(UTC))
    if vendor == "postgresql":  # it does so by itself; SQLite only when told, which nobody does
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE relay_relaysession, relay_relayleg")


def _admin(query: str) -> Callable[[], object]:
    def ask() -> None:
        client = Client()
        client.force_login(User.objects.get_or_create(username="root", is_staff=True, is_superuser=True)[0])
        assert client.get(f"/admin/relay/relaysession/{query}").status_code == 200

    return ask


def _exported(account: str | None = None) -> Callable[[], object]:
    window = export.Window(START + timedelta(days=1), START + timedelta(days=2))
    return lambda: list(export.stream(export.ended_sessions(window, account), "csv"))


ASKED: dict[str, Callable[[], object]] = {
    "the list, newest first": _admin(""),
    "its last page": _admin("?p=10"),
    "a day of the list": _admin("?started_from=2026-01-02&started_to=2026-01-02"),
    "live sessions": _admin("?state=live"),
    "one account's": _admin("?account=account-7"),
    "one account's live ones": _admin("?account=account-7&state=live"),
    "one reason": _admin("?reason=node_lost"),
    # With a thousand hits, one stands in PostgreSQL's histogram now and then: it then expects ten thousand
    # and reads the whole table rather than so many single rows.
    "a search": _admin("?q=session-777777"),
    "a search for a subject": _admin("?q=subject-1999"),
    "a search for a UUID": _admin(f"?q={uuid(7)}"),
    "one session": _admin(f"{uuid(7)}/change/"),
    "an export": _exported(),
    "an export of one account": _exported("account-7"),
    "whether an account exists": lambda: export.account_exists("account-7"),
    "whether anyone is silent": lambda: nodes.some_silent("default", lost_seconds=60),
    "settling the silent": lambda: list(nodes.settle("default", lost_seconds=60)),
    "settling dead nodes": lambda: list(nodes.settle_nodes("default", ["host:3:1"])),
}


@pytest.mark.parametrize("what", ASKED)
def test_no_query_reads_every_session(filled: str, what: str) -> None:
    with _caught() as asked:
        ASKED[what]()
    about_sessions = [(s, params) for s, params in asked if "relay_relaysession" in s and s != COUNT_OF_ALL]
    assert about_sessions
    for sql, params in about_sessions:
        plan = _explained(filled, sql, params)
        assert not reads_every_session(filled, sql, plan), f"{sql}\n{plan}"


def test_a_query_that_reads_every_session_is_seen(filled: str) -> None:
    with _caught() as asked:
        list(RelaySession.objects.filter(paired_seconds__gt=1)[:1])
    ((sql, params),) = asked
    assert reads_every_session(filled, sql, _explained(filled, sql, params))


@contextmanager
def _caught() -> Iterator[list[tuple[str, Any]]]:
    asked: list[tuple[str, Any]] = []

    def catch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.lstrip().split()[0] in {"SELECT", "UPDATE", "DELETE", "INSERT"}:
            asked.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(catch):
        yield asked


def _explained(vendor: str, sql: str, params: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute(("EXPLAIN " if vendor == "postgresql" else "EXPLAIN QUERY PLAN ") + sql, params)
        return "\n".join(str(row[-1]) for row in cursor.fetchall())
