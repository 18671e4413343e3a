"""Usage as a busy relay would have recorded it, made up: for demos, screenshots and measurements.

Pure: the same arguments give the same records. Every record is ended and bears a node's name that no node can
have (`NODE_PREFIX`), by which it is told from a real one.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from uuid import UUID

from relay.ledger.records import LegRecord, SessionRecord, milliseconds
from relay.rules.closing import Close, CloseReason
from relay.rules.lifecycle import ENDINGS, State
from relay.rules.roles import Role
from relay.rules.traffic import MOST_POINTS, Point

NODE_PREFIX = "generated/"
"""A host name has no slash, so no process is ever called like this."""

HOURS = (22, 15, 10, 7, 6, 8, 14, 28, 46, 62, 70, 74, 76, 74, 72, 74, 80, 90, 100, 98, 90, 76, 56, 36)
"""Sessions begun in each hour of a day (UTC), relative to the busiest."""

WEEKEND = 0.55
"""A Saturday or Sunday beside a working day."""

REASONS = {
    CloseReason.PEER_LEFT: 78.0,
    CloseReason.PEER_LOST: 9.0,
    CloseReason.WAIT_TIMEOUT: 5.0,
    CloseReason.IDLE_TIMEOUT: 3.0,
    CloseReason.REPLACED: 2.0,
    CloseReason.STALLED: 0.8,
    CloseReason.RESTARTING: 0.8,
    CloseReason.QUOTA_EXCEEDED: 0.5,
    CloseReason.LINK_LOST: 0.25,
    CloseReason.MESSAGE_TOO_BIG: 0.2,
    CloseReason.EXPIRED: 0.15,
    CloseReason.NODE_LOST: 0.15,
    CloseReason.CLOSED_BY_OPERATOR: 0.1,
    CloseReason.UNAVAILABLE: 0.05,
}
"""Every reason with which a session can end, and its part in a hundred."""

UNPAIRED = ENDINGS[State.WAITING] - ENDINGS[State.PAIRED]
"""Reasons that end only a session whose second leg never came."""

WAIT_TIMEOUT_MS = 300_000
CHECKPOINT_MS = 10_000
LONGEST_MS = 86_400_000

NAMES = (
    "alder",
    "brook",
    "cobalt",
    "delta",
    "ember",
    "fjord",
    "grove",
    "harbor",
    "iris",
    "juniper",
    "kestrel",
)
TRADES = ("robotics", "health", "labs", "energy", "logistics", "cams", "farms", "games", "mobility")

NETWORKS = ("192.0.2.", "198.51.100.", "203.0.113.", "2001:db8::")
"""Address ranges that documentation may use (RFC 5737, RFC 3849)."""


@dataclass(frozen=True, slots=True)
class Account:
    name: str | None
    scale: float
    """Typical bytes of one session."""
    people: int


def sessions(count: int, days: int, until: datetime, seed: int) -> Iterator[SessionRecord]:
    """`count` ended sessions of the `days` before `until` (aware), about in the order of their begins.

    From 16 sessions on, every reason in `REASONS` is there.
    """
    made = _Made(seed, until)
    hours = [until - timedelta(hours=back) for back in range(days * 24, 0, -1)]
    weights = [HOURS[hour.hour] * (WEEKEND if hour.weekday() > 4 else 1.0) for hour in hours]
    counts = [0] * len(hours)
    for index in made.random.choices(range(len(hours)), weights, k=count):
        counts[index] += 1
    number = 0
    for hour, in_hour in zip(hours, counts, strict=True):
        for offset in sorted(made.random.random() for _ in range(in_hour)):
            yield made.session(number, hour + timedelta(hours=offset))
            number += 1


class _Made:
    def __init__(self, seed: int, until: datetime) -> None:
        self.random = random.Random(f"{seed} {until.isoformat()}")  # noqa: S311 - made up, not secret
        self.until = until
        own = random.Random(seed)  # noqa: S311 - the accounts are the same at all times
        self.accounts = [
            Account(f"{name}-{trade}", 4e5 * own.lognormvariate(0, 1.2), 4 + round(600 / (i + 1)))
            for i, (name, trade) in enumerate(
                own.sample([(name, trade) for name in NAMES for trade in TRADES], 60)
            )
        ]
        self.accounts.append(Account(None, 5e4, 20))  # tokens may name no account
        self._shares = list(accumulate(1 / (i + 1) ** 1.15 for i in range(len(self.accounts))))
        self._reasons = list(REASONS)
        self._reason_shares = list(accumulate(REASONS.values()))

    def session(self, number: int, started_at: datetime) -> SessionRecord:
        chance = self.random
        account = self.accounts[bisect_left(self._shares, chance.random() * self._shares[-1])]
        # The first few have one reason each, so that none is missing.
        reason = (
            self._reasons[number]
            if number < len(self._reasons)
            else self._reasons[bisect_left(self._reason_shares, chance.random() * self._reason_shares[-1])]
        )
        paired = reason not in UNPAIRED and chance.random() < 0.97
        paired = paired or reason not in ENDINGS[State.WAITING]
        most_ms = milliseconds((self.until - started_at).total_seconds())
        if paired:
            waiting_ms = min(round(1000 * chance.lognormvariate(0.4, 1.1)), WAIT_TIMEOUT_MS, most_ms)
            lasts = chance.lognormvariate(math.log(200), 1.5) if reason is not CloseReason.EXPIRED else 86_400
            paired_ms = min(round(1000 * lasts), LONGEST_MS - waiting_ms, most_ms - waiting_ms)
        else:
            waits = 1000 * chance.lognormvariate(3, 1) if reason not in UNPAIRED else WAIT_TIMEOUT_MS
            waiting_ms, paired_ms = min(round(waits), most_ms), 0
        up = down = 0
        if paired:
            total = account.scale * chance.lognormvariate(0, 1.1) * (1 + paired_ms / 300_000) ** 0.6
            share = chance.betavariate(1.2, 2.2)
            up, down = round(total * share), round(total * (1 - share))
        frame = chance.choice((90, 400, 1200, 8000, 32_000))
        ended_at = started_at + timedelta(milliseconds=waiting_ms + paired_ms)
        paired_at = started_at + timedelta(milliseconds=waiting_ms) if paired else None
        node = f"{NODE_PREFIX}{chance.randrange(1, 4)}"
        close = Close.by_peer(1000, "") if reason is CloseReason.PEER_LEFT else Close.because(reason)
        person = int(account.people * chance.random() ** 2)
        phone = f"phone-{person:03}"
        legs = [self._leg(Role.CLIENT, phone, account, started_at, ended_at, close, down, frame, node)]
        if paired_at is not None:
            subject = f"hub-{person // 3:03}"
            legs.append(self._leg(Role.SERVER, subject, account, paired_at, ended_at, close, up, frame, node))
        return SessionRecord(
            session_uuid=self._uuid(),
            session_id=f"{'call' if frame < 1000 else 'sync'}-{chance.getrandbits(40):010x}",
            account_id=account.name,
            node=node,
            started_at=started_at,
            paired_at=paired_at,
            timestamp=ended_at,
            reason=reason,
            waiting_ms=waiting_ms,
            paired_ms=paired_ms,
            bytes_client_to_server=up,
            bytes_server_to_client=down,
            frames_client_to_server=-(-up // frame),
            frames_server_to_client=-(-down // frame),
            legs=tuple(legs),
            traffic=self._traffic(waiting_ms, paired_ms, up, down),
        )

    def _traffic(self, waiting_ms: int, paired_ms: int, up: int, down: int) -> tuple[Point, ...]:
        """A curve with bursts and pauses, by the checkpoints that there would have been."""
        checkpoints = min(MOST_POINTS // 2, paired_ms // CHECKPOINT_MS)
        bursts = [self.random.random() ** 3 for _ in range(checkpoints + 1)]
        sums = list(accumulate(bursts))
        return tuple(
            (
                waiting_ms + paired_ms * (i + 1) // len(sums),
                round(up * so_far / sums[-1]),
                round(down * so_far / sums[-1]),
            )
            for i, so_far in enumerate(sums)
        )

    def _leg(
        self,
        role: Role,
        subject: str,
        account: Account,
        joined_at: datetime,
        left_at: datetime,
        close: Close,
        received: int,
        frame: int,
        node: str,
    ) -> LegRecord:
        network = self.random.choice(NETWORKS)
        # The one whose connection dropped, and everyone on a node that died, was told nothing.
        untold = close.reason is CloseReason.NODE_LOST or (
            close.reason is CloseReason.PEER_LOST and role is Role.CLIENT
        )
        return LegRecord(
            leg_uuid=self._uuid(),
            role=role,
            subject=subject,
            account_id=account.name,
            address=f"{network}{self.random.randrange(1, 255)}",
            node=node,
            joined_at=joined_at,
            left_at=left_at,
            bytes_received=received,
            frames_received=-(-received // frame),
            close_code=None if untold else close.code,
            close_reason="" if untold else close.text,
        )

    def _uuid(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)
