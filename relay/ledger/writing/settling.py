"""By hand what running nodes do at each checkpoint: replay spools, close what dead nodes left open."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from django.db import DEFAULT_DB_ALIAS

from relay.ledger.records import SessionRecord
from relay.ledger.writing import nodes, replay
from relay.ledger.writing.lines import LinePrinter
from relay.ledger.writing.spool import node_of


@dataclass(slots=True)
class Done:
    """What was found and done."""

    spools: int = 0
    replayed: int = 0
    """Records of those spools."""
    in_use: int = 0
    """Spools of living processes, which were left alone."""
    closed: int = 0
    """Sessions closed as `node_lost`."""


def settle(
    spool_dir: Path | None,
    lost_seconds: float,
    wait: Callable[[float], None] = time.sleep,
    using: str = DEFAULT_DB_ALIAS,
) -> Done:
    """Replay the spools in `spool_dir` that no living process has, then close what nobody's node has open.

    Waits `lost_seconds` before it takes silence for death, unless nothing is left: after an outage of the
    database every heartbeat is old, and the living have to come back first. Safe beside running nodes, and
    changes nothing when it's done twice. Prints the lines that are due. Raises what the database raises, and
    `OSError` for a spool that can't be read.
    """
    done, lines, dead = Done(), LinePrinter(), set()
    for path in replay.abandoned_in(spool_dir) if spool_dir is not None else ():
        with replay.taken_over(path) as entries:
            if entries is None:
                done.in_use += 1
                continue
            done.spools += 1
            dead.add(node_of(path))
            for batch in replay.batches(entries):
                _print(lines, replay.write(batch, using, tried=False))
                done.replayed += len(batch)
    dead.update(nodes.gone_from(nodes.this_place(), using))
    for settled in nodes.settle_nodes(using, dead):
        _print(lines, settled)
        done.closed += len(settled)
    if nodes.some_silent(using, lost_seconds=lost_seconds):
        wait(lost_seconds)
        for settled in nodes.settle(using, lost_seconds=lost_seconds):
            _print(lines, settled)
            done.closed += len(settled)
    lines.close(lost_seconds)
    return done


def _print(lines: LinePrinter, records: list[SessionRecord]) -> None:
    for record in records:
        lines.put(record)
