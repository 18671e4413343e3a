"""Each way in which the relay ends a session is told on the page in words."""

import asyncio
import contextlib
import sqlite3
import threading
import uuid
from pathlib import Path

import pytest
from channels_redis.pubsub import RedisPubSubChannelLayer
from playwright.sync_api import Browser

from relay import sessions
from relay.client.connection import SENTENCES, Closed
from relay.client.reconnecting import DROPPED
from relay.rules.closing import CloseReason
from tests.behaviour.clients import closed, connect, drop, pair
from tests.client.ends import OF_BOB
from tests.console.ends import Visit, beside, meet, visiting
from tests.relays import running

pytestmark = pytest.mark.system

BY_EVENT = (
    CloseReason.REPLACED,
    CloseReason.STALLED,
    CloseReason.LINK_LOST,
    CloseReason.QUOTA_EXCEEDED,
    CloseReason.CLOSED_BY_OPERATOR,
    CloseReason.MESSAGE_TOO_BIG,
    CloseReason.RESTARTING,
    CloseReason.UNAVAILABLE,
)
ELSEWHERE = {1006, 3403, 4401, 4403}
"""Relays that are gone, keys and tokens that are refused: in the tests of pages and sessions."""
BY_LIMITS = {4408, 4409, 4410, 4412, 4414}


WATCH = """() => {
    const [state, detail] = ["state", "detail"].map((id) => document.getElementById(id));
    window.told = [];
    const note = () => window.told.push(`${state.textContent}: ${detail.textContent}`);
    new MutationObserver(note).observe(state, { childList: true });
}"""
"""Keeps all that is told: that it tries again is gone from the page within a tenth of a second."""


def told(visit: Visit, code: int) -> None:
    """Wait until the page has said why it ended, or tries again, which it then leaves."""
    again = code in DROPPED
    title = "Trying again" if again else "Closed"
    line = f"{title}: {SENTENCES[code][0].upper()}{SENTENCES[code][1:]}."
    visit.page.wait_for_function("(line) => window.told.includes(line)", arg=line)
    if again:
        visit.leave()
        visit.shows("You left")


def test_what_a_relay_with_short_limits_says(chromium: Browser, tmp_path: Path, session_id: str) -> None:
    there = threading.Event()

    async def fill_both_places() -> None:
        async with pair(relay, f"{session_id}-full") as both:
            there.set()
            await closed(both[0])

    async def come_and_say_nothing() -> None:
        async with connect(relay, f"{session_id}-silent") as socket:
            await socket.wait_closed()

    async def come_and_drop() -> None:
        async with connect(relay, f"{session_id}-dropped") as socket:
            await socket.recv()
            await drop(socket)

    async def answer_for_ever() -> None:
        with contextlib.suppress(Closed):
            async with meet(visit, f"{session_id}-long") as peer:
                async for message in peer:
                    await peer.send(b"Q" + message[1:])

    limits = {"SESSION_TIMEOUT": "2", "RELAY_MAX_SESSION_SECONDS": "4"}
    with running("daphne spliced", tmp_path, limits) as relay, visiting(chromium, relay) as visit:
        visit.go()
        visit.page.evaluate(WATCH)
        visit.join(f"{session_id}-alone")
        told(visit, 4408)
        filling = beside(fill_both_places)
        assert there.wait(10)
        visit.join(f"{session_id}-full")
        told(visit, 4409)
        filling.result()
        silent = beside(come_and_say_nothing)
        visit.join(f"{session_id}-silent")
        told(visit, 4412)
        silent.result()
        answering = beside(answer_for_ever)
        visit.join(f"{session_id}-long", key=OF_BOB)
        visit.shows("Connected")
        told(visit, 4414)
        answering.result()
        dropping = beside(come_and_drop)
        visit.join(f"{session_id}-dropped")
        told(visit, 4410)
        dropping.result()


def test_what_a_relay_says_when_it_is_told_to_close(
    chromium: Browser, tmp_path: Path, session_id: str, redis_url: str
) -> None:
    """By the event through the channel layer with which an operator ends a session, for whatever reason."""
    assert {reason.code for reason in BY_EVENT} | BY_LIMITS | ELSEWHERE == SENTENCES.keys()

    async def come_and_close(name: str, reason: CloseReason) -> None:
        async with connect(relay, name) as socket:
            await socket.recv()  # the page is there, so the session has both legs
            layer = RedisPubSubChannelLayer(hosts=[redis_url])
            event = {"type": sessions.CLOSE_EVENT, "reason": reason}
            await layer.group_send(sessions.group_name(await recorded(name)), event)
            await layer.flush()
            await socket.wait_closed()

    async def recorded(name: str) -> uuid.UUID:
        query = "SELECT session_uuid FROM relay_relaysession WHERE session_id = ?"
        while True:
            with contextlib.closing(sqlite3.connect(tmp_path / "relay.sqlite3")) as database:
                if found := database.execute(query, [name]).fetchone():
                    return uuid.UUID(found[0])
            await asyncio.sleep(0.02)

    environ = {"REDIS_URL": redis_url, "RELAY_CONSOLE": "1"}
    with (
        running("daphne spliced", tmp_path, environ) as relay,
        visiting(chromium, relay) as visit,
    ):
        visit.go()
        visit.page.evaluate(WATCH)
        for reason in BY_EVENT:
            closing = beside(lambda reason=reason: come_and_close(f"{session_id}-{reason}", reason))
            visit.join(f"{session_id}-{reason}")
            told(visit, reason.code)
            closing.result()
