"""Memory is bounded: who is behind slows down who is ahead. Each on Daphne as it comes, and on ours."""

import time

import pytest

from tests.servers.conftest import OURS, get, growth_mib, is_ours, resident_mib
from tests.servers.wire import BINARY, CLOSE, PING, Wire, frame, request

MIB = 2**20
KERNEL_MIB = 12
"""More than the kernel's buffers of the two ends of a connection hold."""


def test_an_application_that_is_behind_slows_the_sender(fresh):
    get(fresh, "/close")
    chunk = frame(BINARY, bytes(65536)) * 16
    before = resident_mib(fresh)
    with Wire(fresh.port, "/gated/sink") as client:
        sent = client.push(chunk * 64, patience=1)
        grown = resident_mib(fresh) - before
        if is_ours(fresh):
            assert sent < KERNEL_MIB * MIB
            assert grown < 4
        else:
            assert sent == len(chunk) * 64
            assert grown > 48
            get(fresh, "/open")
            return
        get(fresh, "/open")
        rest = chunk * 64
        client.send(rest[sent:] + frame(CLOSE, b"\x03\xe8"))
        fresh.wait_until(lambda: fresh.lines("counted"), "count what came")
        assert fresh.lines("counted")[-1]["count"] == 1024
        assert fresh.lines("counted")[-1]["size"] == 1024 * 65536


def test_a_client_that_does_not_wait_to_be_accepted_is_held_back(start):
    """It should wait (RFC 6455 section 4.1). What it sends is read on once it's accepted: none is lost."""
    server = start(OURS)
    count = 512
    data = frame(BINARY, bytes(65536)) * count
    before = resident_mib(server)
    with Wire(server.port) as client:
        client.send(request("/gated/accept"))
        sent = client.push(data, patience=0.5)
        assert sent < KERNEL_MIB * MIB
        assert resident_mib(server) - before < 4
        get(server, "/open")
        assert client.response_head().startswith(b"HTTP/1.1 101 ")
        client.send(data[sent:] + frame(CLOSE, b"\x03\xe8"))
        server.wait_until(lambda: server.lines("counted"), "count what came")
    (counted,) = server.lines("counted")
    assert (counted["count"], counted["size"]) == (count, count * 65536)


@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "one byte"])
def test_a_flood_of_tiny_messages_is_bounded_too(fresh, payload):
    get(fresh, "/close")
    count = 200_000
    before = resident_mib(fresh)
    with Wire(fresh.port, "/gated/sink") as client:
        data = frame(BINARY, payload) * count
        sent = client.push(data, patience=2)
        grown = growth_mib(fresh, before, enough=20, seconds=3 if is_ours(fresh) else 20)
        get(fresh, "/open")
        if not is_ours(fresh):
            assert grown >= 20
            return
        assert grown < 6
        client.send(data[sent:] + frame(CLOSE, b"\x03\xe8"))
        fresh.wait_until(lambda: fresh.lines("counted")[-1:] and fresh.lines("counted")[-1]["count"] == count,
                          "count what came")  # fmt: skip
        assert fresh.lines("counted")[-1]["size"] == count * len(payload)


def test_a_message_of_endless_empty_fragments_is_bounded(ours):
    before = resident_mib(ours)
    with Wire(ours.port, "/echo") as client:
        client.send(frame(BINARY, b"a", fin=False))
        client.send(frame(0, b"", fin=False) * 200_000)
        client.send(frame(0, b"z"))
        assert client.message() == b"az"
    assert resident_mib(ours) - before < 1


def test_pings_of_a_client_that_reads_nothing_do_not_fill_the_memory(ours):
    before = resident_mib(ours)
    with Wire(ours.port, "/echo", receive_buffer=4096) as client:
        client.send(frame(PING, bytes(125)) * 100_000 + frame(PING, b"last") + frame(BINARY, b"end"))
        ours.wait_until(lambda: resident_mib(ours) > 0, "live")
        payload = b""
        pongs = 0
        while payload != b"end":
            first, payload = client.next_frame()
            pongs += first == 0x8A
        assert pongs < 100_000  # RFC 6455 section 5.5.3: the latest is enough
    assert resident_mib(ours) - before < 4


def test_send_waits_while_the_peer_reads_nothing_and_goes_on_when_it_reads(fresh):
    before = resident_mib(fresh)
    with Wire(fresh.port, "/source?1600x65536", receive_buffer=65536) as client:
        if not is_ours(fresh):
            fresh.wait_until(lambda: fresh.lines("all sent"), "send all")
            assert resident_mib(fresh) - before > 60
            return
        counts = -1
        while counts != (counts := len(fresh.lines("sent"))):
            time.sleep(0.3)  # a moment in which it could send more
        assert counts * 16 < KERNEL_MIB * MIB / 65536
        assert not fresh.lines("all sent")
        assert resident_mib(fresh) - before < 4
        for number in range(1600):
            assert int.from_bytes(client.message()[:4], "big") == number
        assert client.close_frame() == (4000, "that was all")


def test_a_send_that_is_cancelled_while_it_waits_was_not_sent(ours):
    with Wire(ours.port, "/cancelled/send", receive_buffer=65536) as client:
        ours.wait_until(lambda: ours.lines("cancelled"), "be cancelled")
        sent = ours.lines("cancelled")[-1]["sent"]
        numbers = [int.from_bytes(client.message()[:4], "big") for _ in range(sent + 1)]
        assert numbers == list(range(sent + 1))
        assert client.close_frame() == (1000, "")


def test_one_of_several_sends_that_wait_is_cancelled_and_the_others_are_not(ours):
    with Wire(ours.port, "/waiting/sends", receive_buffer=65536) as client:
        ours.wait_until(lambda: [line for line in ours.lines("waiting") if "waits" in line], "cancel one")
        told = ours.lines("waiting")[-1]
        assert (told["cancelled"], told["waits"]) == (True, True)
        while (payload := client.message()) == bytes(65536):
            pass
        assert payload == b"2"
        assert client.close_frame() == (1000, "")


def test_connections_that_come_and_go_leave_no_memory_behind(ours):
    def connect(count: int) -> None:
        for _ in range(count):
            with Wire(ours.port, "/echo") as client:
                client.send(frame(CLOSE, b"\x03\xe8"))
                assert client.ends()

    connect(500)
    before = resident_mib(ours)
    connect(1500)
    assert resident_mib(ours) - before < 1.5


def test_send_waits_over_tls_too(server):
    with server.connect("/source?1600x65536", receive_buffer=65536) as client:
        counts = -1
        while counts != (counts := len(server.lines("sent"))):
            time.sleep(0.3)  # a moment in which it could send more
        assert counts * 16 < KERNEL_MIB * MIB / 65536
        for number in range(1600):
            assert int.from_bytes(client.message()[:4], "big") == number
        assert client.close_frame() == (4000, "that was all")
