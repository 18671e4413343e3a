"""The export of many sessions to CSV, beside a bare psycopg cursor that feeds `csv.writer`, on PostgreSQL."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import psycopg

from .contestants import ROOT
from .plan import MIB
from .runner import Cell

OURS, BARE = "export-relay", "export-bare"

TITLES = {
    OURS: "`manage.py export_usage --format csv` to a file, on PostgreSQL, from start to exit",
    BARE: "the same columns and rows through a psycopg server-side cursor to `csv.writer`, without the relay",
}

LONGEST_SECONDS = 600
"""For one export; a million sessions take about ten seconds on an idle machine."""

COLUMNS = (
    "session_id, duration_seconds, bytes_client_to_server, bytes_server_to_client, total_bytes, timestamp, "
    "session_uuid, account_id, reason, waiting_seconds, paired_seconds, frames_client_to_server, "
    "frames_server_to_client, corrects_id, revision"
)

BARE_PROGRAM = """
import csv, sys
import psycopg
url, output, columns = sys.argv[1:]
with psycopg.connect(url) as connection, open(output, "w", newline="") as file:
    with connection.cursor("bare") as cursor:
        cursor.itersize = 2000
        cursor.execute(
            f"SELECT {columns} FROM relay_relaysession WHERE timestamp >= '2026-11-01Z' "
            "AND timestamp < '2026-12-01Z' ORDER BY timestamp, session_uuid"
        )
        csv.writer(file).writerows(cursor)
"""

LAUNCHER = """
import json, os, sys, time
began = time.monotonic()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
cpu = usage.ru_utime + usage.ru_stime
figures = {"seconds": time.monotonic() - began, "cpu_seconds": cpu, "peak_bytes": usage.ru_maxrss * 1024}
print(json.dumps(figures))
sys.exit(os.waitstatus_to_exitcode(status) and 1)
"""
"""Runs a command from a small process: Linux counts what the parent had as the child's peak, too."""

FILL = """
INSERT INTO relay_relaysession
    (session_uuid, session_id, account_id, duration_seconds, waiting_seconds, paired_seconds,
     bytes_client_to_server, bytes_server_to_client, total_bytes, frames_client_to_server,
     frames_server_to_client, timestamp, reason, started_at, paired_at, node)
SELECT md5(n::text)::uuid, 'session-' || n, 'account-' || n %% 1000, 0.001 * (n %% 100000 + 250), 0.25,
       0.001 * (n %% 100000), n, 2 * n::bigint, 3 * n::bigint, n %% 977, n %% 1013, ended, 'peer_left',
       ended - interval '2 minutes', ended - interval '1 minute', 'host:1:1'
FROM generate_series(1, %s) AS n,
     LATERAL (SELECT timestamptz '2026-11-01Z' + n * interval '30 days' / (%s + 1)) AS times(exact),
     LATERAL (SELECT date_trunc('milliseconds', exact)) AS cut(ended)
"""
"""In the order of their ends, as a ledger writes them, on all days of a month."""


def run(sessions: int, repetitions: int, tell: Callable[[str], None]) -> dict[str, Cell]:
    """Both in turn, `repetitions` times, on a server of their own with a month of `sessions`."""
    from tests.databases import Postgres  # needs Django and pytest, which the other workloads don't

    cells = {OURS: Cell(), BARE: Cell()}
    tell(f"export: filling a database with {sessions:,} sessions")
    server = Postgres()
    with ExitStack() as cleaning, tempfile.TemporaryDirectory(prefix="lem-bench-") as folder:
        cleaning.callback(server.remove)
        server.start()
        url = server.create("export")
        _fill(url, sessions)
        commands = {
            OURS: ([sys.executable, "manage.py", "export_usage", "--month", "2026-11", "--output"], []),
            BARE: ([sys.executable, "-c", BARE_PROGRAM, _dsn(url)], [COLUMNS]),
        }
        for repetition in range(repetitions):
            for name, (command, more) in commands.items():
                tell(f"{repetition + 1}/{repetitions} export {name}")
                output = Path(folder) / f"{name}.csv"
                try:
                    cells[name].runs.append(_measure([*command, str(output), *more], url, output, sessions))
                except RuntimeError as error:
                    cells[name].runs.append(None)
                    cells[name].failures.append(str(error))
                output.unlink(missing_ok=True)
    return cells


def _dsn(url: str) -> str:
    return url.replace("postgres://", "postgresql://", 1)


def _fill(url: str, sessions: int) -> None:
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        check=True,
        timeout=120,
    )
    with psycopg.connect(_dsn(url), autocommit=True) as connection:
        connection.execute(FILL, [sessions, sessions])
        connection.execute("VACUUM ANALYZE relay_relaysession")


def _measure(command: Sequence[str], url: str, output: Path, sessions: int) -> dict[str, float]:
    """One run in a process of its own: its time, CPU and peak memory. Raises `RuntimeError`."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "it ended without a word").splitlines()[-1])
    with output.open("rb") as file:
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(MIB), b""))
    if not sessions <= lines <= sessions + 1:  # one of the two has a header
        raise RuntimeError(f"{lines} lines, expected those of {sessions} sessions")
    size = output.stat().st_size
    return {**json.loads(done.stdout), "file_bytes": size, "sessions": sessions}
