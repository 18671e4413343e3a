"""Who ends when: applications, sockets, keepalive. On Daphne as it comes, and on ours."""

import signal
import time

import pytest

from tests.servers.conftest import OURS, STOCK, get
from tests.servers.wire import BINARY, CLOSE, PING, PONG, TEXT, Wire, frame, request

QUICK_PINGS = ("--ping-interval", "1", "--ping-timeout", "1")


@pytest.mark.parametrize("kind", [STOCK, OURS])
def test_an_application_that_returns_closes_its_socket(start, kind):
    server = start(kind)
    with Wire(server.port, "/return") as client:
        if kind == STOCK:
            assert client.silent(2.5)
        else:
            assert client.close_frame() == (1000, "")
            assert client.ends(1.5)


def test_an_application_that_fails_closes_with_1011_at_once_and_is_logged_once(start):
    server = start(OURS, clean=False)
    started = time.monotonic()
    with Wire(server.port, "/raise") as client:
        assert client.close_frame() == (1011, "")
        assert time.monotonic() - started < 0.5
        assert client.ends(1.5)
    with Wire(server.port) as client:
        client.send(request("/raise_early"))
        assert client.response_head().startswith(b"HTTP/1.1 500 ")
    assert get(server, "/fail").status_code == 500
    assert server.stderr.count("RuntimeError: asked to fail") == 3
    assert server.stderr.count("Traceback") == 3


@pytest.mark.parametrize("kind", [STOCK, OURS])
def test_an_application_works_off_what_was_queued_when_its_socket_closed(start, kind):
    """Ours waits while it takes something each RELAY_CLOSE_SECONDS + RELAY_STALL_SECONDS (0.5 s here)."""
    options = ("--application-close-timeout", "0") if kind == STOCK else ()
    server = start(kind, *options, RELAY_CLOSE_SECONDS="0.4", RELAY_STALL_SECONDS="0.3")
    with Wire(server.port, "/slow/worker") as client:
        client.send(frame(TEXT, b"x") * 10 + frame(CLOSE, b"\x03\xe8"))
        assert client.ends()
    if kind == STOCK:
        server.wait_until(lambda: server.lines("error"), "be cancelled")
        assert server.lines("error")[0]["kind"] == "CancelledError"
    else:
        server.wait_until(lambda: server.lines("worked off"), "work it off")
        assert server.lines("worked off")[0]["count"] == 10


def test_an_application_that_does_nothing_after_its_socket_closed_is_cancelled_and_that_is_logged(start):
    server = start(OURS, RELAY_CLOSE_SECONDS="0.5", RELAY_STALL_SECONDS="0.5")
    with Wire(server.port, "/deaf") as client:
        client.send(frame(CLOSE, b"\x03\xe8"))
        assert client.ends()
    server.wait_until(lambda: server.lines("error"), "be cancelled")
    assert server.lines("error")[0]["kind"] == "CancelledError"
    assert "is cancelled" in server.stderr


def test_keepalive_finds_a_peer_that_answers_nothing(start):
    server = start(OURS, *QUICK_PINGS)
    with Wire(server.port, "/echo") as client:
        assert client.next_frame()[0] == 0x80 | PING
        assert client.ends(6)
    server.wait_until(lambda: server.lines("websocket.disconnect"), "hear of it")
    told = server.lines("websocket.disconnect")[0]
    assert (told["code"], told["clean"]) == (1006, False)


def test_keepalive_leaves_a_peer_alone_that_answers_or_sends_anything(start):
    server = start(OURS, *QUICK_PINGS)
    with Wire(server.port, "/echo") as answers, Wire(server.port, "/echo") as sends:
        for _ in range(4):
            first, payload = answers.next_frame()
            assert first == 0x80 | PING
            answers.send(frame(PONG, payload))
            sends.send(frame(TEXT, b"hi"))
            assert sends.message() == b"hi"
    assert not [line for line in server.lines("websocket.disconnect") if line["code"] != 1006]


def test_keepalive_never_ends_a_connection_that_we_do_not_read(start):
    """Its pongs wait behind the frames that the application has not taken."""
    server = start(OURS, *QUICK_PINGS, RELAY_READ_HIGH_BYTES="4096", RELAY_READ_LOW_BYTES="1024")
    with Wire(server.port, "/gated/echo") as client:
        data = frame(BINARY, bytes(1024)) * 1000
        client.send(data)
        for _ in range(4):  # pings, a second apart, with a time-out of one second
            assert client.next_frame()[0] == 0x80 | PING
        get(server, "/open")
        for _ in range(1000):
            assert client.message() == bytes(1024)


@pytest.mark.parametrize("how", ["reset", "closed"])
def test_a_connection_that_is_lost_while_we_do_not_read_it_is_noticed(start, how):
    """At once if its host says so, else when its host answers a ping of the keepalive with a reset."""
    pings = QUICK_PINGS if how == "closed" else ("--ping-interval", "3600")
    server = start(OURS, *pings, RELAY_READ_HIGH_BYTES="4096", RELAY_READ_LOW_BYTES="1024")
    client = Wire(server.port, "/deaf")
    server.wait_until(lambda: server.lines("waiting"), "wait")
    client.send(frame(BINARY, bytes(1024)) * 1000)
    if how == "reset":
        client.reset()
    else:
        client.socket.close()
    server.wait_until(lambda: server.lines("websocket_disconnect"), "notice", seconds=6)
    assert server.lines("websocket_disconnect")[0]["code"] == 1006


def test_what_a_client_sent_before_it_went_is_read_to_its_close(start):
    """It sends more than is read at once, closes, and doesn't wait for the answer: nothing is lost."""
    server = start(OURS, RELAY_READ_HIGH_BYTES="4096", RELAY_READ_LOW_BYTES="1024")
    client = Wire(server.port, "/gated/sink")
    client.send(frame(BINARY, bytes(1024)) * 1000 + frame(CLOSE, b"\x03\xe9gone"))
    client.socket.close()
    server.wait_until(lambda: server.lines("waiting"), "wait")
    get(server, "/open")
    server.wait_until(lambda: server.lines("websocket.disconnect"), "read all")
    assert (server.lines("counted")[0]["count"], server.lines("counted")[0]["size"]) == (1000, 1000 * 1024)
    told = server.lines("websocket.disconnect")[0]
    assert (told["code"], told["reason"], told["clean"]) == (1001, "gone", True)


def test_who_is_never_accepted_is_refused_in_time(start):
    server = start(OURS, "--websocket_connect_timeout", "1")
    with Wire(server.port) as client:
        client.send(request("/never_accept"))
        assert client.response_head().startswith(b"HTTP/1.1 503 ")
        assert client.ends(1.5)
    server.wait_until(lambda: server.lines("end"), "hear of it")


# The drain


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_all_with_1012_and_waits_for_their_applications(start, number):
    server = start(OURS)
    with Wire(server.port, "/drain") as hooked, Wire(server.port, "/gated/echo") as other:
        server.wait_until(lambda: server.lines("waiting"), "wait")
        server.tell(number)
        assert hooked.close_frame() == (1012, "come back")
        assert other.close_frame()[0] == 1012
        get_refused(server)
    # The application behind the gate doesn't end by itself: it's cancelled at the end of the drain.
    assert server.wait(5) == 0
    told = [line["code"] for line in server.lines("websocket.disconnect")]
    assert told == [1012]
    assert server.lines("cleaned up")
    assert [line["kind"] for line in server.lines("error")] == ["CancelledError"]


def get_refused(server):
    """Nobody listens any more."""
    with pytest.raises(OSError, match="refused"):
        Wire(server.port)


def test_a_drain_ends_as_soon_as_nothing_is_left(start):
    server = start(OURS, RELAY_DRAIN_SECONDS="60")
    with Wire(server.port, "/drain") as client, Wire(server.port) as half:
        half.send(b"GET / HTTP/1.1\r\n")  # a request that never gets whole is nothing to wait for
        server.wait_until(lambda: server.lines("waiting"), "wait")
        server.tell(signal.SIGTERM)
        assert client.close_frame() == (1012, "come back")
        assert server.wait(5) == 0


def test_a_request_that_is_being_answered_is_answered(start):
    server = start(OURS, RELAY_DRAIN_SECONDS="60")
    with Wire(server.port) as slow, Wire(server.port) as opens:
        slow.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        opens.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        opens.response_head()
        server.wait_until(lambda: server.lines("slow"), "begin")
        server.tell(signal.SIGTERM)
        server.wait_until(lambda: server.lines("drain"), "drain")
        opens.buffer = b""
        opens.send(b"GET /open HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in slow.response_head()
    assert server.wait(5) == 0


@pytest.mark.parametrize("path", ["/stubborn", "/block"])
def test_nothing_keeps_a_drain_from_its_end(start, path):
    """Not an application that refuses to be cancelled, nor one that blocks the event loop."""
    server = start(OURS, RELAY_DRAIN_SECONDS="1.5", clean=False)
    with Wire(server.port, path) as client:
        server.wait_until(lambda: server.lines("waiting"), "wait")
        client.send(frame(TEXT, b"go"))
        if path == "/block":
            server.wait_until(lambda: server.lines("blocking"), "block")
        started = time.monotonic()
        server.tell(signal.SIGTERM)
        assert server.wait(5) == 0
        assert time.monotonic() - started < 1.5 + 0.5


def test_a_second_signal_ends_it_at_once(start):
    server = start(OURS, RELAY_DRAIN_SECONDS="60")
    with Wire(server.port, "/deaf"):
        server.wait_until(lambda: server.lines("waiting"), "wait")
        server.tell(signal.SIGTERM)
        server.wait_until(lambda: server.lines("drain"), "drain")
        server.tell(signal.SIGINT)
        assert server.wait(5) == 128 + signal.SIGINT


def test_daphne_as_it_comes_drops_everyone_and_trips_over_an_application_that_returned(start):
    server = start(STOCK, "-v", "2")
    with Wire(server.port, "/return"), Wire(server.port, "/deaf") as client:
        # With -v 2 it has Twisted print to the log.
        server.wait_until(lambda: '"waiting"' in server.stderr, "wait")
        time.sleep(1.5)  # for its poll, which reaps the first application
        server.tell(signal.SIGTERM)
        assert client.ends()
        server.wait(10)
    assert "CancelledError" not in server.stderr  # the second one was not even cancelled
    assert "KeyError: 'application_instance'" in server.stderr
