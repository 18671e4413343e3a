"""The remote link's own tasks; what it promises about frames is tested with real nodes in `tests/nodes`."""

import asyncio
from unittest.mock import Mock
from uuid import uuid4

from relay.links import Meter
from relay.links.remote import RemoteLink
from relay.roles import Role


class StubbornExchange:
    """Its `send` swallows a cancellation, as `asyncio.wait_for` may before Python 3.12."""

    channel = "here"

    def __init__(self) -> None:
        self.sending = asyncio.Event()

    def register(self, *_: object) -> None:
        pass

    unregister = register

    async def send(self, *_: object) -> None:
        self.sending.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return


async def test_a_closed_link_leaves_no_task_behind():
    before = asyncio.all_tasks()
    exchange = StubbornExchange()
    link = RemoteLink(
        exchange,
        uuid4(),
        Role.CLIENT,
        "there",
        Mock(),
        send=Mock(),
        inward=Meter(),
        outward=Meter(),
        hello={},
        window_bytes=1000,
        batch_bytes=1000,
        max_message_bytes=1000,
        link_seconds=15,
        clock=asyncio.get_running_loop().time,
    )
    await exchange.sending.wait()
    tasks = asyncio.all_tasks() - before
    link.close()
    done, pending = await asyncio.wait(tasks, timeout=5)
    assert len(done) == 2
    assert not pending
