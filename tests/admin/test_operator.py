"""An operator closes a live session from the admin of any node, and what the dashboard says of the relay."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.behaviour.clients import closed, pair
from tests.databases import Valkey
from tests.records import check_session, recorded
from tests.relays import Relay, running

LIST = "/admin/relay/relaysession/"
ONE_FRAME = {
    "bytes_client_to_server": len("still open"),
    "frames_client_to_server": 1,
    "bytes_server_to_client": 0,
    "frames_server_to_client": 0,
}
"""What is counted where the client has said that it's still open."""

MAKE_USERS = """
from django.contrib.auth.models import Permission, User
for name, extra in (("support", []), ("operator", ["close_session"])):
    user, _ = User.objects.get_or_create(username=name, is_staff=True)
    user.set_password(name); user.save()
    user.user_permissions.set(Permission.objects.filter(
        codename__in=["view_relaysession", "view_relayleg", *extra]))
"""


@asynccontextmanager
async def logged_in(relay: Any, name: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser session of `name`; users and their passwords are made if they aren't there."""
    async with httpx.AsyncClient(base_url=relay.http_url, follow_redirects=True, timeout=20) as browser:
        await browser.get("/admin/login/")
        form = {"username": name, "password": name, "next": "/admin/", **token(browser)}
        await browser.post("/admin/login/", data=form)
        if "sessionid" not in browser.cookies:
            await asyncio.to_thread(relay.manage, "shell", "-v0", "-c", MAKE_USERS)
            await browser.post("/admin/login/", data=form)
        assert "sessionid" in browser.cookies
        yield browser


def token(browser: httpx.AsyncClient) -> dict[str, str]:
    return {"csrfmiddlewaretoken": browser.cookies["csrftoken"]}


async def listed(browser: httpx.AsyncClient, session_id: str) -> str:
    """The UUID of a live session, once the list has it."""
    async with asyncio.timeout(20):
        while True:
            page = (await browser.get(f"{LIST}?state=paired&q={session_id}")).text
            if found := re.search(rf"{LIST}([0-9a-f-]{{36}})/change/", page):
                return found[1]


async def test_an_operator_closes_a_session_and_both_legs_are_told(relay, session_id):
    async with pair(relay, session_id) as (client, server), logged_in(relay, "operator") as browser:
        uuid = await listed(browser, session_id)
        assert "Close session" in (await browser.get(f"{LIST}{uuid}/change/")).text
        form = {"action": "close_sessions", "_selected_action": uuid, **token(browser)}
        asked = await browser.post(LIST, data=form)
        assert "Close this session?" in asked.text
        await client.send("still open")
        assert await server.recv() == "still open"
        done = await browser.post(LIST, data={**form, "confirmed": "yes"})
        assert "Closed 1 session." in done.text
        for socket in (client, server):
            assert await closed(socket) == (4499, "closed_by_operator: an operator closed the session")
        assert "Closed by operator (4499)." in (await browser.get(f"{LIST}{uuid}/history/")).text
    line = await relay.session_closed(session_id)
    assert line["reason"] == "closed_by_operator"
    told = (4499, "closed_by_operator: an operator closed the session")
    check_session(await recorded(relay, session_id), line, ONE_FRAME, closes={"client": told, "server": told})


@pytest.fixture(scope="module")
def one_relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """For what doesn't depend on the path between the legs."""
    with running("daphne spliced", tmp_path_factory.mktemp("operator")) as relay:
        yield relay


async def test_support_can_look_and_not_close(one_relay, session_id):
    relay = one_relay
    async with pair(relay, session_id) as (client, server), logged_in(relay, "support") as browser:
        uuid = await listed(browser, session_id)
        form = {"action": "close_sessions", "_selected_action": uuid, "confirmed": "yes", **token(browser)}
        await browser.post(LIST, data=form)
        await client.send("still open")
        assert await server.recv() == "still open"
    line = await relay.session_closed(session_id)
    assert line["reason"] == "peer_left"
    check_session(await recorded(relay, session_id), line, ONE_FRAME)


async def test_the_dashboard_counts_what_is_live(one_relay, session_id):
    relay = one_relay
    async with pair(relay, session_id), logged_in(relay, "support") as browser:
        await listed(browser, session_id)
        async with asyncio.timeout(20):
            while True:
                page = (await browser.get(f"{LIST}figures/")).text
                counted = [int(number) for number in re.findall(r'relay-number">(\d+)</p>', page)]
                if counted[0] >= 1 and counted[1] >= 2:
                    break
        assert "failing" not in page
        assert "Live sessions" in (await browser.get("/admin/")).text


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    server = Valkey()
    server.start()
    yield server
    server.stop()


async def test_the_dashboard_names_what_is_away_and_a_close_that_did_not_get_through(
    session_id, own_valkey, tmp_path
):
    # A Redis that is new lets nobody in for a fifth of RELAY_NODE_SECONDS.
    environ = {"REDIS_URL": own_valkey.url, "RELAY_ADMIT_SECONDS": "2", "RELAY_NODE_SECONDS": "5"}
    with running("daphne spliced", tmp_path, environ) as relay:
        async with pair(relay, session_id) as (client, server), logged_in(relay, "operator") as browser:
            uuid = await listed(browser, session_id)
            own_valkey.stop()
            page = (await browser.get(f"{LIST}figures/")).text
            assert re.search(r'class="failing"><strong>Redis</strong> [^<]*rendezvous: ', page)
            form = {
                "action": "close_sessions",
                "_selected_action": uuid,
                "confirmed": "yes",
                **token(browser),
            }
            assert "1 session could not be told" in (await browser.post(LIST, data=form)).text
            await client.send("still open")
            assert await server.recv() == "still open"
            assert "Closed by operator" not in (await browser.get(f"{LIST}{uuid}/history/")).text
        line = await relay.session_closed(session_id)
        assert line["reason"] == "peer_left"
        check_session(await recorded(relay, session_id), line, ONE_FRAME)
