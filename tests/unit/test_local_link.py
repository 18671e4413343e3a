"""Promises of `relay.links.local`: what is sent on, and when it counts."""

import asyncio

import pytest

from relay.links import MessageTooBig, Meter
from relay.links.local import LocalLink, payload_bytes

NOW = 7.5


@pytest.fixture
def meter() -> Meter:
    return Meter()


def figures(meter: Meter) -> tuple[int, int, float]:
    return meter.frames, meter.nbytes, meter.active_at


@pytest.mark.parametrize(
    ("message", "onward", "size"),
    [
        ({"bytes": b"\x00\xff"}, {"bytes": b"\x00\xff"}, 2),
        ({"bytes": b""}, {"bytes": b""}, 0),
        ({"bytes": b"", "text": None}, {"bytes": b""}, 0),
        ({"bytes": None, "text": "abc"}, {"text": "abc"}, 3),
        ({"text": ""}, {"text": ""}, 0),
        ({"text": "größe"}, {"text": "größe"}, 7),
    ],
    ids=str,
)
async def test_a_message_is_sent_on_as_it_came_and_its_payload_is_counted(meter, message, onward, size):
    sent = []

    async def send(message):
        sent.append(message)

    message = {"type": "websocket.receive", **message}
    assert payload_bytes(message) == size
    link = LocalLink(send, meter, lambda: NOW, max_message_bytes=7)
    await link.forward(message)
    await link.forward(message)
    assert sent == [{"type": "websocket.send", **onward}] * 2
    assert figures(meter) == (2, 2 * size, NOW)


async def test_it_counts_once_the_peers_socket_has_taken_it_and_tells_that_it_waits(meter):
    room = asyncio.Event()

    async def send(message):
        await room.wait()

    link = LocalLink(send, meter, lambda: NOW, max_message_bytes=10)
    assert not link.sending
    forwarding = asyncio.create_task(link.forward({"bytes": b"x"}))
    await asyncio.sleep(0)
    assert (link.sending, figures(meter)) == (True, (0, 0, 0.0))
    room.set()
    await forwarding
    assert (link.sending, figures(meter)) == (False, (1, 1, NOW))


async def test_what_the_peer_did_not_take_is_not_counted(meter):
    async def send(message):
        raise ConnectionResetError

    link = LocalLink(send, meter, lambda: NOW, max_message_bytes=10)
    with pytest.raises(OSError, match=r"^$"):
        await link.forward({"bytes": b"x"})
    assert figures(meter) == (0, 0, 0.0)


@pytest.mark.parametrize("message", [{"bytes": b"x" * 6}, {"text": "ü" * 3}], ids=["binary", "text"])
async def test_a_message_of_exactly_the_limit_passes_and_a_byte_more_is_not_sent(meter, message):
    sent = []

    async def send(message):
        sent.append(message)

    await LocalLink(send, meter, lambda: NOW, max_message_bytes=6).forward(message)
    with pytest.raises(MessageTooBig) as caught:
        await LocalLink(send, meter, lambda: NOW, max_message_bytes=5).forward(message)
    assert (caught.value.size, len(sent), meter.nbytes) == (6, 1, 6)
