"""Times the dashboard's queries on a real PostgreSQL with a million sessions in a month.

`python -m tests.admin.measure [SESSIONS]`: EXPLAIN ANALYZE, the best of five, of each kind of query; exits
with status 1 when one of the dashboard's own takes 100 ms or more.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

os.environ.setdefault("RELAY_VAR_DIR", tempfile.mkdtemp(prefix="lem-measure-"))
os.environ["DJANGO_SETTINGS_MODULE"] = "lemcloud.settings"

import django

django.setup()

from django.core.cache import cache
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from relay.ledger import figures
from relay.models import RelaySession
from tests.databases import Postgres, as_default

LIMIT_MS = 100.0
COPIES = 20
"""Rows are made up once and then copied by the database, which is many times faster."""


def main(sessions: int) -> int:
    postgres = Postgres()
    try:
        postgres.start()
        with as_default(postgres.create("measure")):
            return measure(sessions)
    finally:
        postgres.remove()


def measure(sessions: int) -> int:
    now = datetime.now(UTC).replace(microsecond=0)
    call_command("migrate", verbosity=0)
    call_command("generate_usage", sessions=sessions // COPIES, until=now.isoformat())
    copy_rows(COPIES - 1)
    ended = RelaySession.objects.filter(timestamp__gte=now - timedelta(hours=24))
    print(f"{RelaySession.objects.count():,} sessions, {ended.count():,} of them in the last day")
    hour = now.replace(minute=0, second=0)
    queries: dict[str, Callable[[], Any]] = {
        "live sessions, legs and nodes": figures.live,
        "bytes by hour": lambda: figures.hours(ended, hour),
        "close reasons": lambda: figures.reasons(ended),
        "top accounts": lambda: figures.top_accounts(ended),
        "both distributions": lambda: figures.distributions(ended),
        "one day of the month": lambda: figures.days(now),
    }
    slowest = 0.0
    for name, ask in queries.items():
        took = explained(ask)
        slowest = max(slowest, took)
        print(f"{name:32} {took:8.1f} ms")
    for name in ("cold", "warm"):
        if name == "cold":
            cache.clear()
        started = time.perf_counter()
        figures.figures(now)
        print(f"{'all of it, ' + name:32} {(time.perf_counter() - started) * 1000:8.1f} ms")
    month = now.replace(day=1, hour=0, minute=0, second=0)
    took = explained(lambda: list(figures.account_totals(month, now)[:200]))
    print(f"{'accounts page, a whole month':32} {took:8.1f} ms (asked for by a person)")
    return 0 if slowest < LIMIT_MS else 1


def copy_rows(times: int) -> None:
    columns = [field.column for field in RelaySession._meta.concrete_fields if not field.primary_key]
    names = ", ".join(columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO relay_relaysession (session_uuid, {names}) SELECT gen_random_uuid(), {names} "  # noqa: S608
            f"FROM relay_relaysession, generate_series(1, {times}) ORDER BY timestamp"
        )
        cursor.execute("VACUUM ANALYZE")


def explained(ask: Callable[[], Any]) -> float:
    """Milliseconds of the slowest statement of `ask`, each at its best of five."""
    cache.clear()
    with CaptureQueriesContext(connection) as captured:
        ask()
    return max(statement_ms(query["sql"]) for query in captured.captured_queries)


def statement_ms(sql: str) -> float:
    times = []
    with connection.cursor() as cursor:
        for _ in range(5):
            cursor.execute(f"EXPLAIN ANALYZE {sql}")
            times.append(float(cursor.fetchall()[-1][0].split()[2]))
    return min(times)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
