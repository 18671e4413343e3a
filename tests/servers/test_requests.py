"""Bad requests get a clean answer, and logs hold no secrets."""

import json

import pytest

from tests.servers.conftest import OURS, STOCK, get, resident_mib
from tests.servers.wire import KEY, Wire, request

HEAD = (
    "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: {KEY}"
)

BAD = {
    "no version": "GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade",
    "other version": f"GET /echo HTTP/1.1\r\n{HEAD.replace('13', '7')}",
    "no key": f"GET /echo HTTP/1.1\r\n{HEAD.rpartition(chr(13))[0]}",
    "short key": f"GET /echo HTTP/1.1\r\n{HEAD[:-4]}",
    "no connection header": f"GET /echo HTTP/1.1\r\n{HEAD.replace('Connection: Upgrade', 'X: y')}",
    "no host": f"GET /echo HTTP/1.1\r\n{HEAD.replace('Host: x', 'X: y')}",
    "bad port": f"GET /echo HTTP/1.1\r\n{HEAD.replace('Host: x', 'Host: x:y')}",
    "bad origin": f"GET /echo HTTP/1.1\r\n{HEAD}\r\nOrigin: http://[",
    "POST": f"POST /echo HTTP/1.1\r\nContent-Length: 0\r\n{HEAD}",
    "fragment": f"GET /echo#x HTTP/1.1\r\n{HEAD}",
    "bad authority": f"GET //[x HTTP/1.1\r\n{HEAD}",
    "bad extension": f"GET /echo HTTP/1.1\r\n{HEAD}\r\nSec-WebSocket-Extensions: permessage-deflate; x=\x00",
    "twice the same protocol": f"GET /echo HTTP/1.1\r\n{HEAD}\r\nSec-WebSocket-Protocol: a, a",
    "protocol not ASCII": f"GET /echo HTTP/1.1\r\n{HEAD}\r\nSec-WebSocket-Protocol: \xfc",
    "root path not ASCII": "GET /echo HTTP/1.1\r\nHost: x\r\nDaphne-Root-Path: \xfc",
    "path not ASCII": f"GET /ech\xf6 HTTP/1.1\r\n{HEAD}",
    "query not ASCII": f"GET /echo?\xfc HTTP/1.1\r\n{HEAD}",
    "query of plain HTTP not ASCII": "GET /x?\xfc HTTP/1.1\r\nHost: x",
    "control character": "GET / HTTP/1.1\r\nHost: x\r\nX-Y: a\x0bb",
    "header name": "GET / HTTP/1.1\r\nHost: x\r\nX Y: a",
    "no HTTP": "\x00\x01\x02\xff",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
    "long query": f"GET /echo?token={'x' * 1_000_000} HTTP/1.1\r\n{HEAD}",
    "long header": f"GET /echo HTTP/1.1\r\n{HEAD}\r\nAuthorization: Bearer {'x' * 1_000_000}",
    "many headers": f"GET /echo HTTP/1.1\r\n{HEAD}" + "".join(f"\r\nX-{n}: {n}" for n in range(2000)),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_request_gets_a_clean_answer_or_the_end(ours, bad):
    with Wire(ours.port) as client:
        client.push(f"{BAD[bad]}\r\n\r\n".encode("latin-1"))
        try:
            head = client.response_head()
        except ConnectionResetError:
            head = b""
        if head:
            assert head.split(b" ")[1] in (b"400", b"405", b"414", b"431", b"505"), head
    assert get(ours, "/").status_code == 200


@pytest.mark.parametrize("bad", ["long query", "long header"])
def test_what_is_too_long_is_said_to_be(ours, bad):
    with Wire(ours.port) as client:
        client.push(f"{BAD[bad]}\r\n\r\n".encode("latin-1")[:20_000])
        assert client.response_head().split(b" ")[1] == (b"414" if "query" in bad else b"431")


@pytest.mark.parametrize("kind", [STOCK, OURS])
@pytest.mark.parametrize("how", ["length", "chunks"])
def test_the_body_of_a_request_is_bounded(start, kind, how):
    server = start(kind)
    before = resident_mib(server)
    size = 32 * 2**20
    with Wire(server.port) as client:
        if how == "length":
            client.send(f"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
            client.push(bytes(size))
        else:
            client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.push((b"100000\r\n" + bytes(2**20) + b"\r\n") * 32 + b"0\r\n\r\n")
        try:
            head = client.response_head()
        except ConnectionResetError:
            head = b""
    if kind == STOCK:
        assert head.startswith(b"HTTP/1.1 200 ")
        assert resident_mib(server) - before > 16
    else:
        assert head == b"" or head.startswith(b"HTTP/1.1 413 ")
        assert resident_mib(server) - before < 8
    assert get(server, "/").status_code == 200


def test_a_body_that_is_announced_as_too_large_is_refused_before_it_comes(ours):
    with Wire(ours.port) as client:
        client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 33554432\r\n\r\n")
        assert client.response_head().startswith(b"HTTP/1.1 413 ")
        assert client.ends(1.5)


def test_the_largest_body_is_taken(ours):
    size = 2_621_440  # what Django takes into memory
    with Wire(ours.port) as client:
        client.send(f"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size))
        assert client.response_head().startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("kind", [STOCK, OURS])
def test_a_malformed_upgrade_leaves_no_traceback(start, kind):
    server = start(kind, "-v", "2")
    with Wire(server.port) as client:
        client.send(f"GET /echo HTTP/1.1\r\n{HEAD}\r\nSec-WebSocket-Protocol: \xfc\r\n\r\n".encode("latin-1"))
        head = client.response_head()
    assert head.split(b" ")[1] == (b"400" if kind == OURS else b"500")
    assert ("Traceback" in server.stderr) == (kind == STOCK)


@pytest.mark.parametrize("verbosity", ["1", "2", "3"])
def test_a_token_in_a_query_is_never_logged(start, verbosity):
    server = start(OURS, "-v", verbosity, clean=False)
    use_tokens(server)
    assert "sesame" not in server.stdout + server.stderr
    for line in server.stdout.splitlines():
        json.loads(line)


def test_a_response_that_broke_off_does_not_pass_for_a_whole_one(start):
    server = start(OURS, clean=False)
    with Wire(server.port) as client:
        client.send(b"GET /break HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.response_head().startswith(b"HTTP/1.1 200 ")
        assert client.ends(3)
        assert not client.buffer.endswith(b"0\r\n\r\n")


def test_daphne_as_it_comes_logs_it(start):
    server = start(STOCK, "--access-log", "-")
    use_tokens(server)
    assert "sesame" in server.stdout


def use_tokens(server):
    """A token in every kind of request, good and bad."""
    with Wire(server.port, "/echo?token=sesame", "Authorization: Bearer sesame"):
        pass
    assert get(server, "/anything?token=sesame").status_code == 200
    assert get(server, "/fail?token=sesame").status_code == 500
    for bad in ("/reject?token=sesame", "/raise_early?token=sesame", "//[x?token=sesame"):
        with Wire(server.port) as client:
            client.send(request(bad, "Authorization: Bearer sesame"))
            client.response_head()
    for name in ("no key", "no version", "fragment", "query not ASCII", "control character"):
        with Wire(server.port) as client:
            client.send(BAD[name].replace(" HTTP/", "?token=sesame HTTP/", 1).encode("latin-1") + b"\r\n\r\n")
            client.response_head()


def test_the_access_log_is_one_json_object_for_each_request_and_each_end(start):
    server = start(OURS)
    get(server, "/some/path?x=1")
    with Wire(server.port, "/echo") as client:
        client.send(b"\x88\x82abcd" + bytes(a ^ b for a, b in zip(b"\x03\xe8", b"ab", strict=True)))
        assert client.ends()
    server.wait_until(lambda: server.lines("websocket_disconnect"), "log it")
    (line,) = server.lines("http_request")
    assert {key: line[key] for key in ("path", "method", "status")} == {
        "path": "/some/path",
        "method": "GET",
        "status": 200,
    }
    assert line["timestamp"].endswith("Z")
    assert line["client"].startswith("127.0.0.1:")
    assert line["seconds"] >= 0
    (begin,), (end,) = server.lines("websocket_connect"), server.lines("websocket_disconnect")
    assert begin["path"] == end["path"] == "/echo"
    assert end["code"] == 1000
    assert not server.lines("websocket_connecting")
