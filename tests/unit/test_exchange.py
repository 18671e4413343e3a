"""Where a process receives what is for its links: each message reaches its leg, whatever goes wrong."""

import asyncio
import logging
from typing import Any

import pytest

from relay.links.exchange import MESSAGE_TYPE, RETRY_SECONDS, Exchange
from relay.rules.roles import Role
from tests.unit.two_nodes import Layer, layer
from tests.unit.virtual import virtually

__all__ = ["layer"]


class Receiver:
    def __init__(self) -> None:
        self.received: list[str] = []

    def receive(self, message: dict[str, Any]) -> None:
        if "bad" in message:
            raise KeyError("serial")
        self.received.append(message["text"])


class Here:
    """An exchange with a receiver for each leg of one session, and what was for nobody."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.strangers: list[str] = []
        self.exchange = Exchange(lambda exchange, message: self.strangers.append(message["text"]))
        self.legs = {role: Receiver() for role in Role}
        for role, receiver in self.legs.items():
            self.exchange.register("s", role, receiver)

    async def hears(self, **message: Any) -> None:
        message = {"type": MESSAGE_TYPE, "session": "s", "to": "server", "text": "", **message}
        self.layer.queues[self.exchange.channel].put_nowait(message)
        await asyncio.sleep(0.01)


@virtually
async def test_a_message_reaches_the_leg_that_it_is_for_and_no_other(layer):
    here = Here(layer)
    await here.exchange.open()
    await here.hears(to="server", text="one")
    await here.hears(to="client", text="two")
    await here.hears(session="another", text="three")
    await here.hears(type="relay.close", text="of another kind")
    here.exchange.unregister("s", Role.SERVER)
    here.exchange.unregister("s", Role.SERVER)
    await here.hears(to="server", text="four")
    assert here.legs[Role.SERVER].received == ["one"]
    assert here.legs[Role.CLIENT].received == ["two"]
    assert here.strangers == ["three", "four"]


@virtually
async def test_a_message_that_can_not_be_read_costs_no_other_one(layer, caplog):
    here = Here(layer)
    await here.exchange.open()
    await here.hears(bad=True)
    await here.hears(text="good")
    assert here.legs[Role.SERVER].received == ["good"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@virtually
async def test_a_channel_layer_that_fails_is_asked_again_once_a_second(layer, monkeypatch, caplog):
    here, asked = Here(layer), 0
    await here.exchange.open()
    await here.hears(text="before")

    async def fail(channel: str) -> None:
        nonlocal asked
        asked += 1
        raise OSError("away")

    receive = layer.receive
    monkeypatch.setattr(layer, "receive", fail)
    await here.hears(text="last")
    await asyncio.sleep(10 * RETRY_SECONDS)
    assert 9 <= asked <= 11
    monkeypatch.setattr(layer, "receive", receive)
    await here.hears(text="after")
    await asyncio.sleep(RETRY_SECONDS)
    assert here.legs[Role.SERVER].received == ["before", "last", "after"]


@virtually
async def test_those_who_open_it_at_once_have_one_channel_and_it_can_be_opened_again_after_a_failure(
    layer, monkeypatch
):
    here, make = Here(layer), layer.new_channel

    async def fail() -> str:
        raise OSError("away")

    monkeypatch.setattr(layer, "new_channel", fail)
    with pytest.raises(OSError, match="away"):
        await here.exchange.open()

    async def slowly() -> str:
        await asyncio.sleep(1)
        return await make()

    monkeypatch.setattr(layer, "new_channel", slowly)
    names = await asyncio.gather(*(here.exchange.open() for _ in range(3)))
    assert set(names) == {here.exchange.channel}
    assert len(layer.queues) == 1
