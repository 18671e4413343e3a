"""A session that ends inside a frame is recorded when that frame is delivered, or never will be."""

import asyncio
from unittest.mock import Mock

import pytest

from relay.rules.closing import Close, CloseReason
from tests.unit.sockets import Socket, turns


@pytest.fixture
def limits():
    return {"close_seconds": 0.05}


class Connection:
    """A socket that is spliced, and inside a frame when its session ends."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ended = loop.create_future()
        self.half = loop.create_future()
        self.unsent_bytes = self.taken_bytes = 0

    def splice(self, peer, meter):
        self.meter = meter
        return True

    def unsplice(self):
        return self.half


def closings(recorder: Mock) -> list:
    return [call.args[0] for call in recorder.record.call_args_list if call.args[0].closed]


async def spliced_pair(here, session_id):
    client, server = (Socket(session_id, connection=Connection()) for _ in range(2))
    await client.open()
    await server.open()
    for socket in (client, server):
        socket.sends(b"hello")
        await turns()
    (live,) = here._live.values()
    return client, server, live


async def test_a_session_is_recorded_when_the_frame_is_delivered_that_its_end_has_cut_in_two(
    here, session_id, recorder
):
    client, server, live = await spliced_pair(here, session_id)
    here.end_session(live, Close.because(CloseReason.CLOSED_BY_OPERATOR))
    await turns()
    assert client.close == server.close == (4499, Close.because(CloseReason.CLOSED_BY_OPERATOR).text)
    assert closings(recorder) == []
    server.connection.half.set_result(None)
    client.connection.meter.nbytes += 1000
    client.connection.half.set_result(None)
    await turns()
    (record,) = closings(recorder)
    assert record.bytes_client_to_server == 1005
    assert sum(leg.bytes_received for leg in record.legs) == 1010


async def test_a_frame_that_nobody_ends_does_not_keep_its_session_from_being_recorded(
    here, session_id, recorder
):
    _, _, live = await spliced_pair(here, session_id)
    recorded = asyncio.Event()
    recorder.record.side_effect = lambda record: recorded.set()
    here.end_session(live, Close.because(CloseReason.CLOSED_BY_OPERATOR))
    async with asyncio.timeout(20):
        await recorded.wait()
    assert [record.reason for record in closings(recorder)] == ["closed_by_operator"]
