"""The queue to an application."""

import asyncio

import pytest

from relay.flow import WaterMarks
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
