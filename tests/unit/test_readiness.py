"""Promises of `relay.readiness` and of the answers over HTTP that stand on it."""

import asyncio
import json
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from channels.layers import get_channel_layer
from django.test import RequestFactory

from relay import readiness, views
from tests.unit.sockets import turns

pytestmark = pytest.mark.timeout(20)  # what is missing here hangs


@pytest.fixture(autouse=True)
def alone(here: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nothing is asked yet, and the database is a mock."""
    monkeypatch.setattr(readiness, "_asking", {})
    monkeypatch.setattr(readiness, "connection", database := Mock(cursor=Mock(return_value=Cursor())))
    here.database = database
    return here


class Cursor:
    def __init__(self) -> None:
        self.execute = Mock()

    def __enter__(self) -> "Cursor":
        return self

    def __exit__(self, *_: object) -> None:
        pass


async def test_nothing_fails_where_all_answer(here):
    assert await readiness.failing() == {}
    here.database.close.assert_called_once()


async def test_a_node_that_drains_or_can_not_save_its_records_is_not_ready(here, recorder):
    here.draining = True
    recorder.spool_error = "no space left"
    assert await readiness.failing() == {"node": "draining", "spool": "no space left"}


async def test_a_backend_that_fails_is_named_without_what_it_says(here, monkeypatch):
    here.database.cursor.side_effect = RuntimeError("password=sesame")
    monkeypatch.setattr(get_channel_layer(), "group_send", AsyncMock(side_effect=ConnectionError("sesame")))
    here.rendezvous.check = AsyncMock(side_effect=ValueError("sesame"))
    assert await readiness.failing() == {
        "database": "RuntimeError",
        "channel layer": "ConnectionError",
        "rendezvous": "ValueError",
    }
    # So that the next answer is about connecting, too.
    here.database.close.assert_called_once()


@pytest.mark.parametrize("limits", [{"admit_seconds": 0.2}], ids=["soon"])
async def test_a_backend_that_hangs_is_away_and_is_asked_once_until_it_answers(here):
    answer = asyncio.Event()
    asked = []

    async def check() -> None:
        asked.append(1)
        await answer.wait()

    here.rendezvous.check = check
    for _ in range(3):
        assert await readiness.failing() == {"rendezvous": "no answer"}
    assert len(asked) == 1
    answer.set()
    await turns()
    for count in (2, 3):
        assert await readiness.failing() == {}
        assert len(asked) == count


async def test_ready_says_503_with_the_failing_parts_and_is_no_error_in_the_log(here):
    answer = await views.ready(RequestFactory().get("/ready"))
    assert (answer.status_code, json.loads(answer.content)) == (200, {"status": "ready"})
    here.draining = True
    answer = await views.ready(RequestFactory().get("/ready"))
    told = {"status": "not ready", "failing": {"node": "draining"}}
    assert (answer.status_code, json.loads(answer.content)) == (503, told)
    assert answer._has_been_logged


def test_health_asks_nobody_and_takes_only_what_reads():
    for method, status in (("GET", 200), ("HEAD", 200), ("POST", 405)):
        answer = views.health(RequestFactory().generic(method, "/health"))
        assert answer.status_code == status


def test_plain_http_to_a_session_is_told_which_protocol_it_needs():
    answer = views.upgrade_required(RequestFactory().get("/relay/room"), "room")
    assert answer.status_code == 426
    assert (answer["Upgrade"], answer["Connection"]) == ("websocket", "Upgrade")
    assert answer["Content-Type"] == "text/plain"


@pytest.mark.parametrize("limits", [{"console": True}, {"console": False}], ids=["on", "off"])
def test_the_console_is_there_where_it_is_turned_on_and_nothing_of_a_peer_can_run_in_it(limits):
    answer = views.console(RequestFactory().get("/"))
    assert answer.status_code == (200 if limits["console"] else 404)
    if limits["console"]:
        policy = answer["Content-Security-Policy"]
        for rule in ("default-src 'none'", "script-src 'self'", "connect-src 'self'", "base-uri 'none'",
                     "form-action 'none'", "frame-ancestors 'none'"):  # fmt: skip
            assert rule in policy
        assert answer["Referrer-Policy"] == "no-referrer"
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert "Set-Cookie" not in answer
    assert views.console(RequestFactory().post("/")).status_code == 405
