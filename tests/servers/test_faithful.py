"""Frames, closes, reasons and headers arrive as they were sent. On Daphne as it comes, and on ours."""

import struct
import time

import pytest

from tests.servers.conftest import OURS, is_ours
from tests.servers.wire import BINARY, CLOSE, PING, PONG, TEXT, Wire, frame, request

CODES = [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 4999]
"""Every kind of code that a close frame may carry (RFC 6455 section 7.4 and IANA)."""

FORBIDDEN = [0, 999, 1004, 1005, 1006, 1015, 2999, 5000]
"""Codes that it may not carry."""


def heard(server, event: str = "websocket.disconnect", after: int = 0):
    """What the application heard or did, when it has; `after` so many times before."""
    server.wait_until(lambda: len(server.lines(event)) > after, f"hear {event}")
    return server.lines(event)[-1]


def test_empty_messages_are_sent_and_one_of_neither_kind_is_an_error(either):
    with Wire(either.port, "/empties") as client:
        if not is_ours(either):
            assert client.silent(1.5)
            return
        assert client.next_frame() == (0x80 | TEXT, b"")
        assert client.next_frame() == (0x80 | BINARY, b"")
        assert client.close_frame()[0] == 1011


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 2**20])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_messages_of_every_length_form_come_back_as_they_were(ours, opcode, size):
    payload = bytes(ord("a") + i % 23 for i in range(size))
    with Wire(ours.port, "/echo") as client:
        client.send(frame(opcode, payload))
        assert client.next_frame() == (0x80 | opcode, payload)


def test_fragments_with_a_ping_between_are_one_message_cut_anywhere(ours):
    data = frame(TEXT, "ü".encode()[:1], fin=False) + frame(PING, b"!") + frame(0, "ü".encode()[1:])
    with Wire(ours.port, "/echo") as client:
        for cut in range(len(data)):
            client.send(data[:cut])
            client.send(data[cut:])
            assert client.next_frame() == (0x80 | PONG, b"!")
            assert client.next_frame() == (0x80 | TEXT, "ü".encode())


@pytest.mark.parametrize("code", CODES)
def test_the_application_closes_with_any_code_and_its_reason(either, code):
    before = len(either.lines("websocket.disconnect"))
    with Wire(either.port, f"/close?{code}&why") as client:
        got = client.close_frame()
        if is_ours(either):
            assert got == (code, "why")
            assert client.ends(1.5)
            told = heard(either, after=before)
            assert (told["code"], told["reason"], told["clean"]) == (code, "why", True)
        else:
            assert got == ((code, "") if code == 1000 or code >= 3000 else (1011, ""))


def test_a_code_that_a_close_frame_cannot_carry_is_the_applications_error(start):
    server = start(OURS, clean=False)
    for code in FORBIDDEN:
        with Wire(server.port, f"/close?{code}&") as client:
            assert client.close_frame()[0] == 1011
        assert f"close code {code} isn't allowed" in server.stderr


@pytest.mark.parametrize("code", [*CODES, None])
def test_the_peers_close_code_and_reason_reach_the_application(either, code):
    before = len(either.lines("websocket.disconnect"))
    payload = b"" if code is None else struct.pack("!H", code) + b"so long"
    with Wire(either.port, "/echo") as client:
        client.send(frame(CLOSE, payload))
        if is_ours(either):
            first, answer = client.next_frame()
            assert first == 0x80 | CLOSE
        assert client.ends(1.5)
    told = heard(either, after=before)
    if is_ours(either):
        assert answer == payload
        assert (told["code"], told["reason"], told["clean"]) == (
            (1005, "", True) if code is None else (code, "so long", True)
        )
    else:
        assert "reason" not in told


@pytest.mark.parametrize("code", FORBIDDEN)
def test_a_close_frame_with_a_code_that_is_not_allowed_is_a_violation(ours, code):
    before = len(ours.lines("websocket.disconnect"))
    with Wire(ours.port, "/echo") as client:
        client.send(frame(CLOSE, struct.pack("!H", code)))
        assert client.close_frame()[0] == 1002
    assert heard(ours, after=before)["code"] == 1002


BAD = {
    "too big": (frame(BINARY, bytes(2**20 + 1)), 1009),
    "too big in fragments": (frame(BINARY, bytes(2**20), fin=False) + frame(0, b"x"), 1009),
    "not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "half a character": (frame(TEXT, b"\xc3"), 1007),
    "close reason not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "not masked": (b"\x82\x01x", 1002),
    "reserved bit": (b"\xc2" + frame(BINARY, b"x")[1:], 1002),
    "reserved opcode": (frame(0x3, b"x"), 1002),
    "nothing to continue": (frame(0x0, b"x"), 1002),
    "fragmented ping": (frame(PING, b"x", fin=False), 1002),
    "close with half a code": (frame(CLOSE, b"x"), 1002),
    "length not minimal": (b"\x82\xfe\x00\x01abcd" + b"x", 1002),
}


@pytest.mark.parametrize("bad", BAD)
def test_who_breaks_a_rule_is_told_which_and_so_is_the_application(either, bad):
    data, code = BAD[bad]
    before = len(either.lines("websocket.disconnect"))
    with Wire(either.port, "/echo") as client:
        client.send(data)
        if not is_ours(either):
            assert client.ends()  # without a word
            assert heard(either, after=before)["code"] == 1006
            return
        assert client.close_frame()[0] == code
        told = heard(either, after=before)
        assert (told["code"], told["clean"]) == (code, False)
        assert told["reason"]
        assert client.ends(1.5) or bad == "not masked"


def test_headers_and_subprotocol_of_the_accept_are_in_the_response(either):
    with Wire(either.port, "/accept", "Sec-WebSocket-Protocol: one, two") as client:
        head = client.head.lower()
        assert b"sec-websocket-protocol: one" in head
        present = [
            line in head.split(b"\r\n") for line in (b"x-node: a", b"set-cookie: a=1", b"set-cookie: b=2")
        ]
        assert present == [is_ours(either)] * 3


def test_the_scope_says_what_the_server_can(either):
    with Wire(either.port, "/scope", "X-Text: caf\xe9"):
        either.wait_until(lambda: either.lines("scope"), "print its scope")
    scope = either.lines("scope")[-1]
    assert ("websocket.http.response" in scope["extensions"]) == is_ours(either)
    assert (scope["asgi"].get("spec_version") == "2.4") == is_ours(either)
    assert "b'caf\\xe9'" in scope["scope"]


def test_an_accept_that_the_client_could_not_make_sense_of_is_the_applications_error(start):
    server = start(OURS, clean=False)
    for mistake in ("protocol", "header", "name"):
        with Wire(server.port) as client:
            client.send(request(f"/bad/accept?{mistake}", "Sec-WebSocket-Protocol: one, two"))
            head = client.response_head()
            assert head.startswith(b"HTTP/1.1 500 "), mistake
            assert b"x-evil" not in head


def test_the_path_is_decoded_and_a_header_that_could_pass_for_another_is_left_out(ours):
    """With an underscore it would be another's in the names of WSGI (CVE-2015-0219)."""
    before = len(ours.lines("scope"))
    with Wire(ours.port, "/%73cope?a%20b", "X_Forwarded_For: 203.0.113.7", "X-Plain: 1"):
        ours.wait_until(lambda: len(ours.lines("scope")) > before, "print its scope")
    scope = ours.lines("scope")[-1]["scope"]
    assert "'path': '/scope'" in scope
    assert "'raw_path': b'/%73cope'" in scope
    assert "'query_string': b'a%20b'" in scope
    assert "(b'x-plain', b'1')" in scope
    assert "forwarded" not in scope


def test_an_upgrade_is_refused_by_a_close_or_with_a_response_of_the_applications_own(ours):
    with Wire(ours.port) as client:
        client.send(request("/reject"))
        assert client.response_head().startswith(b"HTTP/1.1 403 ")
        assert client.ends(1.5)
    with Wire(ours.port) as client:
        client.send(request("/deny"))
        head = client.response_head()
        assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert b"x-why: because" in head
        assert client.ends(1.5) or client.buffer
        assert b"content-length: 12" in head.lower()


def test_a_close_delivers_what_was_sent_before_it_to_a_slow_reader(either):
    """Autobahn drops the connection a second after its close frame, with all that is not sent yet."""
    count = 45
    with Wire(either.port, f"/source?{count}x65536", receive_buffer=4096) as client:
        time.sleep(1.5)  # the reader is slow: that is the case
        got = 0
        try:
            while True:
                client.message()
                got += 1
                if got == count:
                    break
        except (EOFError, OSError):
            pass
        if is_ours(either):
            assert got == count
            assert client.close_frame() == (4000, "that was all")
        else:
            assert got < count


def test_a_peer_that_does_not_answer_a_close_is_dropped_in_time(ours):
    before = len(ours.lines("websocket.disconnect"))
    with Wire(ours.port, "/close?4001&") as client:
        started = time.monotonic()
        assert client.next_frame() == (0x80 | CLOSE, struct.pack("!H", 4001))
        assert client.ends()
        assert 1 < time.monotonic() - started < 4  # RELAY_CLOSE_SECONDS is 2
    told = heard(ours, after=before)
    assert (told["code"], told["clean"]) == (4001, False)


def test_nothing_follows_a_close_frame(ours):
    with Wire(ours.port, "/echo") as client:
        client.send(frame(CLOSE, b"\x03\xe8") + frame(BINARY, b"late") + frame(PING, b"late"))
        assert client.next_frame()[0] == 0x80 | CLOSE
        assert client.ends(1.5)
        assert client.buffer == b""


def test_a_send_after_the_disconnect_is_an_os_error(either):
    with Wire(either.port, "/late/send") as client:
        client.send(frame(CLOSE, b"\x03\xe8"))
        assert client.ends()
    if is_ours(either):
        assert heard(either, "error")["is_os_error"]
    else:
        either.wait_until(
            lambda: any(line["path"] == "/late/send" for line in either.lines("end")), "end in peace"
        )


def test_an_application_that_sends_to_a_closed_socket_is_no_error_in_the_log(start):
    server = start(OURS)
    with Wire(server.port, "/late/send") as client:
        client.send(frame(CLOSE, b"\x03\xe8"))
        assert client.ends()
    server.wait_until(lambda: server.lines("error"), "be told that it's closed")
    assert server.stop() == 0
    assert "Exception inside application" not in server.stderr


def test_frames_that_come_before_the_accept_are_not_lost(ours):
    with Wire(ours.port) as client:
        client.send(request("/echo") + frame(TEXT, b"early") + frame(BINARY, b"\r\n\r\n"))
        assert client.response_head().startswith(b"HTTP/1.1 101 ")
        assert client.message() == b"early"
        assert client.message() == b"\r\n\r\n"
