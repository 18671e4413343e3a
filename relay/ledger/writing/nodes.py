"""Nodes in the database: their heartbeats, and the end of what a dead one left open.

Every node that writes records leaves a heartbeat by the clock of the database, before the first record and
then at each checkpoint. A live row whose node has none, or one that is too old, is nobody's any more.
"""

import os
import socket
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from django.db import connections, transaction
from django.db.models import Exists, OuterRef, Q

from relay.ledger.records import SessionRecord, milliseconds
from relay.models import RelayLeg, RelayNode, RelaySession
from relay.rules.closing import CloseReason

SESSIONS_AT_ONCE = 1000
"""Closed by one statement: as many as one batch of the writer usually has."""


def this_place() -> str:
    """Where process ids mean the same: one boot of one machine and one container on it. Empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()}:{boot}:{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    except OSError:
        return ""


def now(using: str) -> datetime:
    """The clock of the database, to the millisecond; SQLite has none but this machine's."""
    connection = connections[using]
    moment = datetime.now(UTC)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            moment = cursor.fetchone()[0].astimezone(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def beat(node: str, place: str, using: str) -> None:
    """`node` is alive."""
    RelayNode.objects.using(using).bulk_create(
        [RelayNode(node=node, place=place, beat_at=now(using))],
        update_conflicts=True,
        unique_fields=["node"],
        update_fields=["place", "beat_at"],
    )


def leave(node: str, using: str) -> None:
    """`node` has written all it had."""
    RelayNode.objects.using(using).filter(node=node).delete()


def gone_from(place: str, using: str, *, but: str = "") -> list[str]:
    """Nodes of `place`, `but` for one, whose process is no more."""
    nodes = RelayNode.objects.using(using).filter(place=place).exclude(node=but) if place else ()
    return [node.node for node in nodes if not _process_exists(node.node)]


def some_silent(using: str, *, lost_seconds: float) -> bool:
    """Whether `settle` would find something."""
    silent = ~_alive(using, now(using) - timedelta(seconds=lost_seconds))
    return (
        RelaySession.objects.using(using).filter(silent, timestamp__isnull=True).exists()
        or RelayLeg.objects.using(using).filter(silent, left_at__isnull=True).exists()
    )


def settle(using: str, *, lost_seconds: float) -> Iterator[list[SessionRecord]]:
    """Close what is live and of a node whose last heartbeat is older than `lost_seconds`, or that has none.

    Gives the sessions that were closed by this call, and by no other one, after each of its transactions.
    Whoever calls has to know that living nodes could reach the database meanwhile: after an outage every
    heartbeat is old.
    """
    cutoff = now(using) - timedelta(seconds=lost_seconds)
    yield from _close(using, ~_alive(using, cutoff))
    RelayNode.objects.using(using).filter(beat_at__lt=cutoff).delete()


def settle_nodes(using: str, nodes: Collection[str]) -> Iterator[list[SessionRecord]]:
    """As `settle`, for nodes that are known to be dead, however fresh their heartbeats.

    But for sessions with a leg on another node, be it one that has left: that node has better figures, and
    closes them when it finds out. `settle` comes to them if it doesn't.
    """
    if not nodes:
        return
    others = RelayNode.objects.using(using).exclude(node__in=nodes).values("node")
    elsewhere = RelayLeg.objects.using(using).filter(session=OuterRef("pk"), node__in=others)
    yield from _close(using, Q(node__in=nodes), but=Exists(elsewhere))


def _alive(using: str, cutoff: datetime) -> Q:
    return Q(node__in=RelayNode.objects.using(using).filter(beat_at__gte=cutoff).values("node"))


def _close(using: str, of_the_dead: Q, but: Exists | None = None) -> Iterator[list[SessionRecord]]:
    live = RelaySession.objects.using(using).filter(of_the_dead, timestamp__isnull=True)
    if but is not None:
        live = live.exclude(but)
    while True:
        with transaction.atomic(using=using):
            # Rows that somebody else is just writing are left to them, and looked at the next time.
            found = live.order_by("session_uuid")
            if connections[using].features.has_select_for_update_skip_locked:
                found = found.select_for_update(skip_locked=True)
            uuids = list(found.values_list("session_uuid", flat=True)[:SESSIONS_AT_ONCE])
            closed = _close_rows(using, uuids) if uuids else []
        if closed:
            yield closed
        if len(uuids) < SESSIONS_AT_ONCE:
            break
    RelayLeg.objects.using(using).filter(of_the_dead, left_at__isnull=True).update(left_at=now(using))


def _close_rows(using: str, uuids: list[UUID]) -> list[SessionRecord]:
    rows = RelaySession.objects.using(using).filter(session_uuid__in=uuids, timestamp__isnull=True)
    moment = now(using)
    closed = [record_of(row, moment) for row in rows]
    rows.update(timestamp=moment, reason=CloseReason.NODE_LOST)
    return closed


def record_of(row: RelaySession, moment: datetime, reason: str = CloseReason.NODE_LOST) -> SessionRecord:
    """What `row` says of a session that is closed for `reason` at `moment`; without its legs."""
    return SessionRecord(
        session_uuid=row.session_uuid,
        session_id=row.session_id,
        account_id=row.account_id,
        node=row.node,
        started_at=row.started_at,
        paired_at=row.paired_at,
        timestamp=moment,
        reason=reason,
        waiting_ms=milliseconds(row.waiting_seconds),
        paired_ms=milliseconds(row.paired_seconds),
        bytes_client_to_server=row.bytes_client_to_server,
        bytes_server_to_client=row.bytes_server_to_client,
        frames_client_to_server=row.frames_client_to_server,
        frames_server_to_client=row.frames_server_to_client,
    )


def _process_exists(node: str) -> bool:
    """Whether a process has the id of `node` (host:pid:start), and can be that one."""
    pid = node.split(":")[-2] if node.count(":") >= 2 else ""
    if not pid.isdecimal():
        return True  # not to be told
    if int(pid) == os.getpid():
        return False  # an earlier one, with the id of this one
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
