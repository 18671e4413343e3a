"""Old records are deleted, but only those that went to whoever bills from them.

A session goes with its legs, its corrections, and the marks that say where it was exported. So it must not
come back: a spool that brought it back would have it exported, and billed, again. A spool holds what a node
couldn't write, and is replayed at the next start on its machine; RELAY_KEEP_USAGE_DAYS is how long that may
take, and whoever calls keeps to it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import or_
from uuid import UUID

from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from relay.models import ExportedSession, RelayLeg, RelaySession, UsageExport

SESSIONS_AT_ONCE = 1000
"""Deleted in one transaction, with their corrections: so short that nothing waits for it."""


@dataclass(slots=True)
class Pruned:
    """How many sessions and corrections ended before the date: deleted, and kept as not all of a session was
    exported."""

    deleted: int = 0
    kept: int = 0


def destinations(using: str = DEFAULT_DB_ALIAS) -> list[str]:
    """Those that anything was ever exported to."""
    names = UsageExport.objects.using(using).order_by("destination").values_list("destination", flat=True)
    return list(names.distinct())


def prune(before: datetime, exported_to: Collection[str], using: str = DEFAULT_DB_ALIAS) -> Pruned:
    """Delete the sessions that ended before `before` and that all of `exported_to` have, in a delivered file.

    A session and its corrections stay or go together. One transaction a batch: what is done stays done when
    this is killed. Without any destination all is kept. Raises what the database raises.
    """
    done = Pruned()
    old = RelaySession.objects.using(using).filter(timestamp__lt=before)
    if exported_to:
        for uuids in _batches(_prunable(old, before, exported_to)):
            with transaction.atomic(using):
                # Again, inside: a correction may have been made meanwhile.
                originals = list(_prunable(old.filter(pk__in=uuids), before, exported_to))
                corrections = RelaySession.objects.using(using).filter(corrects__in=originals)
                for batch in (list(corrections.values_list("pk", flat=True)), originals):
                    _delete(batch, using)
                    done.deleted += len(batch)
    done.kept = old.count()
    return done


def _prunable(
    old: QuerySet[RelaySession], before: datetime, exported_to: Collection[str]
) -> QuerySet[RelaySession, UUID]:
    """The keys of those originals of `old` that may go, with whatever corrects them."""
    missing = [~Exists(_marks(destination)) for destination in exported_to]
    stays = reduce(or_, missing, Q(timestamp__gte=before))
    corrections = RelaySession.objects.filter(stays, corrects=OuterRef("pk"))
    return old.filter(~stays, ~Exists(corrections), corrects=None).values_list("pk", flat=True)


def _marks(destination: str) -> QuerySet[ExportedSession]:
    return ExportedSession.objects.filter(
        session=OuterRef("pk"), destination=destination, export__delivered_at__isnull=False
    )


def _batches(uuids: QuerySet[RelaySession, UUID]) -> Iterator[list[UUID]]:
    """In the order of their ends, each from where the last one stopped: what is kept is not read again."""
    rest = uuids.order_by("timestamp", "pk")
    while True:
        batch = list(rest.values_list("timestamp", "pk")[:SESSIONS_AT_ONCE])
        if not batch:
            return
        ended, last = batch[-1]
        rest = uuids.filter(Q(timestamp__gt=ended) | Q(timestamp=ended, pk__gt=last)).order_by(
            "timestamp", "pk"
        )
        yield [uuid for _, uuid in batch]


def _delete(uuids: list[UUID], using: str) -> None:
    ExportedSession.objects.using(using).filter(session__in=uuids).delete()
    RelayLeg.objects.using(using).filter(session__in=uuids).delete()
    RelaySession.objects.using(using).filter(pk__in=uuids).delete()
