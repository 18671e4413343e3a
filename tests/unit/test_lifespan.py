"""What the relay does when a server tells that it starts and stops, by ASGI's lifespan."""

import asyncio
from concurrent.futures import Future
from typing import Any
from unittest.mock import Mock

import pytest

from relay import conf, servers, sessions
from relay.rendezvous.memory import MemoryRendezvous
from relay.rules.grants import Grant
from relay.servers.lifespan import lifespan
from relay.sessions.live import Leg, Port


class Server:
    """A server that starts the application and stops it when it's told to."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.application = asyncio.create_task(
            lifespan({"type": "lifespan"}, self.told.get, self.answers.put)  # type: ignore[arg-type]
        )

    async def tell(self, event: str) -> dict[str, Any]:
        self.told.put_nowait({"type": f"lifespan.{event}"})
        async with asyncio.timeout(10):
            return await self.answers.get()


@pytest.fixture
def hooks(monkeypatch):
    """Lists of the hooks that are called; those of the relay itself are away meanwhile."""
    monkeypatch.setattr(servers, "_starts", [])
    monkeypatch.setattr(servers, "_drains", [])
    called: list[Any] = []
    servers.on_start(lambda: called.append("start"))

    async def drain(seconds: float) -> None:
        called.append(seconds)

    servers.on_drain(drain)
    return called


async def test_startup_calls_the_start_hooks_and_shutdown_drains_once_within_its_time(hooks):
    server = Server()
    assert await server.tell("startup") == {"type": "lifespan.startup.complete"}
    assert hooks == ["start"]
    assert await server.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
    await server.application
    (seconds,) = hooks[1:]
    assert 0 < seconds < conf.current().drain_seconds


async def test_a_relay_that_cannot_start_says_why_and_keeps_the_server_from_serving(hooks):
    servers.on_start(Mock(side_effect=conf.SettingError("RELAY_X is no number")))
    answer = await Server().tell("startup")
    assert answer["type"] == "lifespan.startup.failed"
    assert "RELAY_X is no number" in answer["message"]


async def test_a_drain_that_fails_does_not_keep_the_server_from_stopping(hooks, caplog):
    async def fails(seconds: float) -> None:
        raise OSError("a mistake")

    servers.on_drain(fails)
    server = Server()
    await server.tell("startup")
    assert await server.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
    assert "draining failed" in caplog.text


async def test_a_drain_that_hangs_is_given_up_in_time(hooks, monkeypatch, caplog):
    async def hangs(seconds: float) -> None:
        await asyncio.Event().wait()

    servers.on_drain(hangs)
    monkeypatch.setattr(conf, "current", lambda: conf.RelaySettings(drain_seconds=0.05))
    server = Server()
    await server.tell("startup")
    assert await server.tell("shutdown") == {"type": "lifespan.shutdown.complete"}
    assert "draining took too long" in caplog.text


# What neither a lifespan nor our own server catches


@pytest.fixture
def safe():
    """Done when the record is."""
    return Future()


@pytest.fixture
def recorder(safe):
    return Mock(safe=Mock(return_value=safe))


@pytest.fixture
def here(recorder):
    return sessions.Sessions(conf.RelaySettings(), MemoryRendezvous(), recorder)


async def seated(here: sessions.Sessions) -> Leg:
    return await here.join("room", Grant(None, None, None, None, None), Port(Mock(), ""))


async def test_waiting_for_a_record_ends_when_it_is_safe_and_its_line_is_printed(here, recorder, safe):
    leg = await seated(here)
    safe.set_result(None)
    await here.saved(leg)
    recorder.safe.assert_called_once_with(leg.session_uuid, printed=True)


async def test_waiting_for_a_record_outlasts_being_cancelled_again_and_again(here, safe):
    leg = await seated(here)
    waiting = asyncio.create_task(here.saved(leg))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    safe.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_waiting_for_a_record_is_bounded(here, monkeypatch):
    monkeypatch.setattr(sessions.service, "SAFE_SECONDS", 0.01)
    async with asyncio.timeout(5):
        await here.saved(await seated(here))


async def test_what_lives_at_the_exit_is_recorded_once_as_it_is(here, recorder):
    await seated(here)
    here.exit()
    here.exit()
    (last,) = [call.args[0] for call in recorder.record.call_args_list if call.args[0].closed]
    assert (last.reason, last.session_id) == ("restarting", "room")


async def test_a_drain_does_not_leave_the_last_records_to_the_exit(here, recorder):
    await here.drain(0.1)
    recorder.close.assert_called_once()
    recorder.flush.assert_not_called()
