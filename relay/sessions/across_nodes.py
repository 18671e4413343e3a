"""A session whose peer is on another node: what its link tells, and who writes its record.

Each node counts what it delivers. The node of the first leg, the owner, writes the record when it has the
other node's final count; the other node keeps all it would take to write the record until it's told that the
owner's is safe, in the database or on the owner's disk. Where the owner says nothing any more, the other node
writes it, with what it was told last. Nobody asks for the right to: the row in the database is the only
judge. Whoever ends it first has ended it, its line is printed by who did, and what a later one counted beyond
it is a record of its own (`relay.ledger.writing.replay`). So, wherever a process is killed:

- The owner before it has recorded, or with the record in its memory alone: it hasn't told that it's safe. The
  other node asks on, gets no answer, and writes.
- The owner with its record safe, before it has told so: the other node writes, too, and changes nothing, but
  for what the owner could not know.
- The owner after it has told so: its row has ended, or its spool is replayed.
- The other node, at any time: the owner gets no answer, and writes what it was told last.
- Both: the row is closed as `node_lost`, with the last checkpoint.

While Redis is away nothing goes out, so nobody counts as dead, and both wait. While the database is away
records are safe in the spool. Their line waits with them, as the other node may be first to end the row.
Where there is no spool either, both nodes wait for the database. A node that was taken for dead and lives
hears that the other one is done, and writes what it has: late, and counted once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any, Protocol

from relay import conf
from relay.ledger.records import iso
from relay.links.exchange import Exchange
from relay.links.remote import RemoteLink
from relay.rules.closing import Close, CloseReason
from relay.sessions.live import LiveSession

DRAIN_POLL_SECONDS = 0.05
"""Between two looks at whether all is delivered while a node drains: once in its life, so it may be plain."""


class Home(Protocol):
    """What a remote session needs of the sessions of its process."""

    settings: conf.RelaySettings
    clock: Callable[[], float]

    def end_session(self, live: LiveSession, close: Close) -> None:
        """End a session, once."""

    def note(self, live: LiveSession, closed: bool = False) -> None:
        """Record a session as it is; `closed` if its figures are final."""

    def safe(self, live: LiveSession) -> Awaitable[None]:
        """Returns when what was noted of a session outlives this process."""

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` in the background."""

    def forget(self, live: LiveSession) -> None:
        """All is said about a session."""


class RemoteSession:
    """One leg of this process, its link, and the part of the record that comes from the other node."""

    def __init__(self, home: Home, live: LiveSession, exchange: Exchange, peer_channel: str) -> None:
        (leg,) = live.legs.values()
        settings = home.settings
        self._home = home
        self._live = live
        self._leg = leg
        self._draining = False
        self._met = False
        self._recorded = False  # by this node, as closed
        self._safe = False  # that record
        self._alone = False  # nobody has to be told that it is
        hello: dict[str, Any] = {
            "session_id": live.session.session_id,
            "channel": exchange.channel,
            "account": leg.grant.account_id,
        }
        if live.owned:
            hello["node"] = live.node
            hello["started_at"] = iso(live.started_at)
            hello["waiting_ms"] = live.session.waiting_ms(home.clock())
        self.link = leg.link = live.link = RemoteLink(
            exchange,
            live.session.uuid,
            leg.role,
            peer_channel,
            self,
            send=leg.port.send,
            inward=live.meters[leg.role.other],
            outward=live.meters[leg.role],
            hello=hello,
            window_bytes=settings.link_window_bytes,
            batch_bytes=settings.link_batch_bytes,
            max_message_bytes=settings.max_message_bytes,
            link_seconds=settings.link_seconds,
            clock=home.clock,
            waits_for_record=live.owned,
        )

    def drain(self) -> None:
        """This node drains: when all is with the peer that was taken from this leg, no more is taken.

        The other node then ends the session, after all that it took from its own leg. To be called again
        until then.
        """
        if not self._draining and self._is_idle:
            self._draining = True
            if self._leg.reader is not None:
                self._leg.reader.cancel()
            self.link.drain()

    @property
    def _is_idle(self) -> bool:
        """Whether all that was taken from this leg is with the peer's node, and all for it delivered."""
        leg = self._leg
        return leg.over.done() or (leg.paired.done() and leg.idle and self.link.quiet)

    # What the link tells, see `relay.links.remote.Ends`

    def met(self, hello: dict[str, Any]) -> None:
        """The peers may send now."""
        live, leg = self._live, self._leg
        self._met = True
        live.accounts[leg.role.other] = hello["account"]
        if not live.owned:
            live.node = hello["node"]
            live.started_at = datetime.fromisoformat(hello["started_at"])
            # Counted back from now, not from this leg's join: the hello's way here makes the session end
            # that much later than its longest duration, never earlier.
            live.session.opened_at = self._home.clock() - hello["waiting_ms"] / 1000
        if not leg.paired.done():
            leg.paired.set_result(None)

    def peer_drains(self) -> None:
        """The other node drains."""
        if not self._draining:
            self._draining = True
            self._home.start(self._end_when_idle())

    async def _end_when_idle(self) -> None:
        while not self._is_idle:  # noqa: ASYNC110 - until the other node loses patience, in seconds
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        self._home.end_session(self._live, Close.because(CloseReason.RESTARTING))

    def peer_ended(self, close: Close) -> None:
        """The peer's node has ended the session; all it had is delivered."""
        self._home.end_session(self._live, close)

    def silent(self) -> None:
        """The link broke, or the other node died: which of the two can't be told from here."""
        self._home.end_session(self._live, Close.because(CloseReason.LINK_LOST))

    def settled(self) -> None:
        """Both counts are final."""
        if self._live.owned:
            self._record()

    def finished(self) -> None:
        """Both nodes know all, and the record is safe."""
        self.link.close()
        self._home.forget(self._live)

    def gone(self) -> None:
        """The other node is done with this session: what it has recorded is safe, and perhaps not all.

        Unless they never met: then it has recorded that nobody came.
        """
        if self._met:
            self._record_alone()
        else:
            self.finished()

    def unanswered(self) -> None:
        """The other node is dead, as far as can be told: it's for this one to see to the record."""
        self._record_alone()

    def give_up(self) -> None:
        """This process ends: record what is known. The link goes on, and tells once that is safe."""
        if self._live.owned:
            self._record()

    def _record_alone(self) -> None:
        self._alone = True
        if self._safe:
            self.finished()
        else:
            self._record()

    def _record(self) -> None:
        if not self._recorded:
            self._recorded = self._live.owned = True
            self._home.note(self._live, closed=True)
            self._home.start(self._see_it_safe())

    async def _see_it_safe(self) -> None:
        await self._home.safe(self._live)
        self._safe = True
        if self._alone:
            self.finished()
        else:
            self.link.recorded()
