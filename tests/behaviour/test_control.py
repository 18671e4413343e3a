"""Control events reach a session through its channel-layer group, whoever sends them."""

import asyncio
import uuid

import pytest
from channels.layers import InMemoryChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from relay import sessions
from relay.rules.closing import CloseReason
from tests.behaviour.clients import closed, pair
from tests.relays import COMMANDS, Relay, running
from tests.rows import booked


@pytest.fixture(scope="module")
def redis_relay(relay_path, request, redis_url, tmp_path_factory):
    """A relay whose channel layer is Redis' (Valkey's) pub/sub."""
    if relay_path not in COMMANDS:
        yield request.getfixturevalue("relay")  # has it anyway
        return
    with running(relay_path, tmp_path_factory.mktemp("redis"), {"REDIS_URL": redis_url}) as relay:
        yield relay


async def close_from_outside(relay: Relay, session_id: str, redis_url: str) -> None:
    """What another process does to close a session: one event to the group of its UUID."""
    layer = RedisPubSubChannelLayer(hosts=[redis_url])
    event = {"type": sessions.CLOSE_EVENT, "reason": CloseReason.CLOSED_BY_OPERATOR}
    await layer.group_send(sessions.group_name(await live_uuid(relay, session_id)), event)
    await layer.flush()


async def live_uuid(relay: Relay, session_id: str) -> uuid.UUID:
    """The UUID of a live session, from its record."""
    code = f"from relay.models import *; print(RelaySession.objects.get(session_id={session_id!r}).pk)"
    async with asyncio.timeout(20):
        while not (
            found := (await asyncio.to_thread(relay.manage, "shell", "-v0", "-c", code, check=False)).stdout
        ):
            pass
    return uuid.UUID(found.strip())


async def test_an_operator_closes_a_session_from_another_process(redis_relay, redis_url, session_id):
    async with pair(redis_relay, session_id) as (client, server):
        await client.send("before")
        assert await server.recv() == "before"
        await close_from_outside(redis_relay, session_id, redis_url)
        for socket in (client, server):
            assert await closed(socket) == (4499, "closed_by_operator: an operator closed the session")
    await booked(redis_relay, session_id, to_server=["before"], to_client=[], reason="closed_by_operator")


async def test_frames_pass_as_ever_with_redis_as_the_channel_layer(redis_relay, session_id):
    async with pair(redis_relay, session_id) as (client, server):
        await client.send("hi")
        assert await server.recv() == "hi"
    await booked(redis_relay, session_id, to_server=["hi"], to_client=[])


@pytest.mark.parametrize("layer", [InMemoryChannelLayer()])
def test_a_group_name_is_one_that_channel_layers_take(layer):
    assert layer.require_valid_group_name(sessions.group_name(uuid.uuid4()))
