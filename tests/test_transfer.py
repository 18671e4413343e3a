"""The main job on real input: 256 MiB of random bytes both ways at once, in frames of mixed sizes."""

import pytest

from tests.behaviour.clients import closed, pair
from tests.relays import COMMANDS
from tests.transfers import Transfer, check_books

SIZE = 256 * 1024 * 1024
"""Bytes of payload in each direction."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("relay_path", list(COMMANDS), indirect=True)  # across nodes: tests/nodes
async def test_256_mib_cross_both_ways_at_once_unaltered(relay, session_id):
    async with pair(relay, session_id) as (client, server):
        async with Transfer(client, server, SIZE, relay.max_message_bytes) as transfer:
            await transfer.completes(280)
        await client.close(4321, "all is there")
        close = await closed(server)
        assert close == (4321, "all is there")
    await check_books(relay, session_id, transfer, {"client": close, "server": close})
