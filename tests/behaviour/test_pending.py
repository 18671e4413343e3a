"""More is kept for a peer that hasn't come yet than its socket takes at once."""

import pytest

from tests.behaviour.clients import connect
from tests.memory import KIB, MIB, BareLeg
from tests.rows import booked
from tests.tokens import token


@pytest.fixture(scope="module")
def limits() -> dict[str, str]:
    return {"RELAY_PENDING_BYTES": str(16 * MIB)}


async def test_what_comes_while_kept_frames_wait_for_the_peer_comes_after_them(small_relay, session_id):
    kept = [bytes([number]) * 64 * KIB for number in range(128)]
    async with connect(small_relay, session_id, token(sub="alice")) as client:
        await small_relay.opened(session_id)
        for frame in kept:
            await client.send(frame)
        await (await client.ping())  # the relay has read them
        async with BareLeg(small_relay, session_id, token(sub="bob")) as slow:
            assert await slow.next_message() == (2, kept[0])
            await client.send("meanwhile")
            for frame in kept[1:]:
                assert await slow.next_message() == (2, frame)
            assert await slow.next_message() == (1, b"meanwhile")
            await client.send("afterwards")
            assert await slow.next_message() == (1, b"afterwards")
            await client.close()
            assert await slow.close_code() == 1000
    sent = [*kept, "meanwhile", "afterwards"]
    await booked(small_relay, session_id, to_server=sent, to_client=[], close=(1000, ""))
