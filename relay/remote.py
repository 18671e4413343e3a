"""A session whose peer is on another node: what its link tells, and who writes its record.

Each node counts what it delivers. The node of the first leg owns the record, and writes it when it has the
other node's final count. Where that can't be had because a node died, whoever is left claims the record in
the rendezvous and writes it with what was told last; so there is one closing of it, whoever comes back later.
"""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Protocol

from relay import conf
from relay.closing import Close, CloseReason
from relay.ledger.records import iso
from relay.links.exchange import Exchange
from relay.links.remote import RemoteLink
from relay.live import LiveSession
from relay.rendezvous import Away, Rendezvous

DRAIN_POLL_SECONDS = 0.05
"""Between two looks at whether all is delivered while a node drains: once in its life, so it may be plain."""


class Home(Protocol):
    """What a remote session needs of the sessions of its process."""

    settings: conf.RelaySettings
    rendezvous: Rendezvous
    clock: Callable[[], float]

    def end_session(self, live: LiveSession, close: Close) -> None:
        """End a session, once."""

    def note(self, live: LiveSession, closed: bool = False) -> None:
        """Record a session as it is; `closed` if its figures are final."""

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
        self._claiming = False
        self._recorded = not live.owned  # nothing is left for this node to record
        self._finished = False
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
        if not self._recorded:
            self._claim(exact=True)

    def finished(self) -> None:
        """Both nodes know all."""
        self._finished = True
        self.link.close()
        self._forget_if_done()

    def gone(self) -> None:
        """The other node is done with this session: it has recorded it if it was to."""
        if self._recorded:
            self.finished()
        else:
            self._claim()

    def unanswered(self) -> None:
        """The other node is dead: it's for this one to record the session, unless it comes too late."""
        self._claim()

    def give_up(self) -> None:
        """This process ends: record what is known."""
        self.link.close()
        if not self._recorded:
            self._recorded = True
            self._home.note(self._live, closed=True)

    def _claim(self, exact: bool = False) -> None:
        if not self._claiming:
            self._claiming = True
            self._home.start(self._record(exact))

    async def _record(self, exact: bool) -> None:
        live = self._live
        try:
            first = await self._home.rendezvous.claim(live.session.uuid)
        except Away:
            if not (exact and live.owned):
                # Perhaps the other node wasn't dead but out of reach: it's asked again.
                self._claiming = False
                self.link.ask_again()
                return
            first = True
        self._recorded = True
        if first:
            live.owned = True
            self._home.note(live, closed=True)
        elif live.owned:
            live.owned = False  # the other node has closed it
            self._home.note(live)
        if exact:
            self._forget_if_done()
        else:
            self.finished()

    def _forget_if_done(self) -> None:
        if self._finished and self._recorded:
            self._home.forget(self._live)
