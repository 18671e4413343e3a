"""The queue to an application."""

import asyncio
import tracemalloc

import pytest

from relay.rules.flow import WaterMarks
from relay.servers.inbox import MESSAGE_BYTES, Inbox


@pytest.fixture
def calls():
    return []


@pytest.fixture
def inbox(calls):
    marks = WaterMarks(high=3 * MESSAGE_BYTES, low=MESSAGE_BYTES)
    return Inbox(marks, pause=lambda: calls.append("pause"), resume=lambda: calls.append("resume"))


async def test_it_pauses_above_the_high_mark_and_resumes_at_the_low_one(inbox, calls):
    for number in range(4):  # empty messages, which count too
        inbox.put({"number": number}, 0)
    assert calls == ["pause"]
    assert [(await inbox.get())["number"] for _ in range(2)] == [0, 1]
    assert calls == ["pause"]
    await inbox.get()
    assert calls == ["pause", "resume"]
    assert (len(inbox), inbox.taken) == (1, 3)


async def test_who_waits_gets_what_comes(inbox):
    getting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put({"type": "late"}, 4)
    assert await getting == {"type": "late"}


async def test_a_get_that_is_cancelled_takes_nothing(inbox):
    getting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put({"type": "kept"}, 4)
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    assert await inbox.get() == {"type": "kept"}


async def test_what_an_empty_message_is_counted_as_is_near_what_it_costs(inbox):
    """Else a flood of them would take many times the memory that the marks allow."""
    count = 10_000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(count):
            inbox.put({"type": "websocket.receive", "bytes": b""}, 0)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / count < 1.5 * MESSAGE_BYTES


async def test_the_payload_counts_beside_that(calls):
    inbox = Inbox(WaterMarks(high=1000, low=0), lambda: calls.append("pause"), lambda: calls.append("resume"))
    inbox.put({"number": 0}, 1000 - MESSAGE_BYTES)
    assert calls == []
    inbox.put({"number": 1}, 0)
    assert calls == ["pause"]
    await inbox.get()
    assert calls == ["pause"]
    await inbox.get()
    assert calls == ["pause", "resume"]


async def test_after_a_get_that_was_cancelled_the_next_one_gets_what_comes(inbox):
    getting = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    inbox.put({"type": "late"}, 4)
    assert await inbox.get() == {"type": "late"}
