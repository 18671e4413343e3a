"""An ASGI application that does what a test asks of it, by the path it's asked under.

What it hears and what happens to it goes to stdout, one JSON object a line.
"""

import asyncio
import contextlib
import json
import time
from typing import Any

from relay.links import SPLICE_EXTENSION, Meter
from relay.links.local import LocalLink


def say(event: str, **details: Any) -> None:
    """Print one line."""
    print(json.dumps({"event": event, **details}), flush=True)  # noqa: T201


class Gate:
    """Opened by a request to /open: what an application waits for before it goes on."""

    def __init__(self) -> None:
        self.event: asyncio.Event | None = None

    def get(self) -> asyncio.Event:
        """Made late, in the event loop."""
        self.event = self.event or asyncio.Event()
        return self.event


gate = Gate()
connections: list[Any] = []


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Dispatch on the path."""
    if scope["type"] == "http":
        await http(scope, receive, send)
        return
    assert (await receive())["type"] == "websocket.connect"
    name = scope["path"].strip("/").replace("/", "_")
    try:
        await globals()[f"do_{name}"](scope, receive, send)
    except BaseException as error:
        say("error", path=scope["path"], kind=type(error).__name__, is_os_error=isinstance(error, OSError))
        raise
    say("end", path=scope["path"])


async def http(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """/open and /close work the gate; /slow answers when it's open; /fail raises, /break does so within its
    answer; anything else is 200.

    /unsplice?NAME ends the session of two spliced sockets, which stay open.
    """
    if scope["path"] == "/open":
        gate.get().set()
    elif scope["path"] == "/close":
        gate.get().clear()
    elif scope["path"] == "/slow":
        say("slow")
        await gate.get().wait()
    elif scope["path"] == "/break":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half of", "more_body": True})
        raise RuntimeError("asked to fail")
    elif scope["path"] == "/unsplice":
        for leg, _ in pairs[scope["query_string"]].legs:
            leg["extensions"][SPLICE_EXTENSION]["connection"].unsplice()
    elif scope["path"] == "/fail":
        raise RuntimeError("asked to fail")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def accept(send: Any, **options: Any) -> None:
    await send({"type": "websocket.accept", **options})


def heard(message: dict[str, Any]) -> None:
    """Print what `receive` gave."""
    details = {key: value for key, value in message.items() if key not in ("type", "bytes")}
    if message.get("bytes") is not None:
        details["bytes"] = len(message["bytes"])
    say(message["type"], **details)


async def do_echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Send back each message as it came, until the disconnect, which is printed."""
    await accept(send)
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
    heard(message)


async def do_scope(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Print the scope."""
    await accept(send)
    shown = ("path", "query_string", "root_path", "subprotocols", "asgi", "headers", "client", "raw_path")
    say("scope", scope=repr({key: scope.get(key) for key in shown}), asgi=scope["asgi"],
        extensions=sorted(scope.get("extensions", ())))  # fmt: skip


async def do_gated_accept(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Accept when the gate is open, then count what came."""
    await gate.get().wait()
    await do_gated_sink(scope, receive, send)


async def do_gated_echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Read nothing until the gate is open, then echo."""
    await accept(send)
    await gate.get().wait()
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
    heard(message)


async def do_gated_sink(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Read nothing until the gate is open, then count what came."""
    await accept(send)
    say("waiting")
    await gate.get().wait()
    count = size = 0
    while (message := await receive())["type"] == "websocket.receive":
        count += 1
        size += len(message.get("bytes") or message.get("text") or b"")
    say("counted", count=count, size=size)
    heard(message)


async def do_source(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Send numbered messages, as many and as large as the query says, then close with 4000."""
    count, size = map(int, scope["query_string"].decode().split("x"))
    await accept(send)
    for number in range(count):
        await send({"type": "websocket.send", "bytes": number.to_bytes(4, "big").ljust(size, b".")})
        if number % 16 == 0:
            say("sent", count=number + 1)
    say("all sent")
    await send({"type": "websocket.close", "code": 4000, "reason": "that was all"})
    heard(await receive())


async def do_cancelled_send(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Fill the peer's socket, then cancel a send that waits, then send one more that tells the count."""
    await accept(send)
    sent = 0
    while True:
        try:
            async with asyncio.timeout(1):
                await send({"type": "websocket.send", "bytes": sent.to_bytes(4, "big").ljust(65536, b".")})
        except TimeoutError:
            break
        sent += 1
    say("cancelled", sent=sent)
    await send({"type": "websocket.send", "bytes": sent.to_bytes(4, "big")})
    await send({"type": "websocket.close"})


async def do_empties(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Send an empty text and an empty binary message, then one of neither."""
    await accept(send)
    await send({"type": "websocket.send", "text": ""})
    await send({"type": "websocket.send", "bytes": b""})
    await send({"type": "websocket.send", "bytes": None, "text": None})


async def do_close(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Close as the query says: code, then reason."""
    code, _, reason = scope["query_string"].decode().partition("&")
    await accept(send)
    await send({"type": "websocket.close", "code": int(code), "reason": reason})
    heard(await receive())


async def do_reject(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "websocket.close"})


async def do_deny(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Deny with a response of our own."""
    headers = [(b"x-why", b"because"), (b"content-type", b"text/plain")]
    await send({"type": "websocket.http.response.start", "status": 404, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"no such ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"path"})


async def do_accept(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Accept with headers, one of them twice, and the first subprotocol that is offered."""
    headers = [(b"x-node", b"a"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    await accept(send, headers=headers, subprotocol=scope["subprotocols"][0])
    await receive()


async def do_bad_accept(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Accept in a way that is a mistake: which one, the query says."""
    options = {
        b"protocol": {"subprotocol": "not offered"},
        b"header": {"headers": [(b"x-a", b"a\r\nx-evil: b")]},
        b"name": {"headers": [(b"", b"a")]},
    }
    await accept(send, **options[scope["query_string"]])


async def do_waiting_sends(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Fill the peer's socket, have two sends wait for room, and cancel one of them."""
    await accept(send)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            while True:
                await send({"type": "websocket.send", "bytes": bytes(65536)})
    one, two = (asyncio.ensure_future(send({"type": "websocket.send", "text": text})) for text in "12")
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.wait((one,))
    say("waiting", cancelled=one.cancelled(), waits=not two.done())
    await two
    await send({"type": "websocket.close"})


async def do_late_send(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Send when the peer is gone."""
    await accept(send)
    heard(await receive())
    await send({"type": "websocket.send", "text": "anyone there?"})


async def do_return(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await accept(send)


async def do_raise(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await accept(send)
    raise RuntimeError("asked to fail")


async def do_raise_early(scope: dict[str, Any], receive: Any, send: Any) -> None:
    raise RuntimeError("asked to fail before accept")


async def do_never_accept(scope: dict[str, Any], receive: Any, send: Any) -> None:
    heard(await receive())


async def do_slow_worker(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Work off what came, one message in half a second, whether or not the socket is there."""
    await accept(send)
    count = 0
    while (await receive())["type"] == "websocket.receive":
        await asyncio.sleep(0.5)
        count += 1
    say("worked off", count=count)


async def do_deaf(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Never read, never end."""
    await accept(send)
    say("waiting")
    await asyncio.Event().wait()


async def do_drain(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """One of the sockets that the drain hook closes (see `ours`)."""
    await accept(send)
    connections.append(send)
    say("waiting")
    message = await receive()
    while message["type"] == "websocket.receive":
        message = await receive()
    heard(message)
    await asyncio.sleep(0.3)
    say("cleaned up")


async def do_stubborn(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Refuse to be cancelled."""
    await accept(send)
    say("waiting")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def do_block(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Block the event loop when asked to."""
    await accept(send)
    say("waiting")
    await receive()
    say("blocking")
    time.sleep(60)  # noqa: ASYNC251 - this is what a test is about


class Pair:
    """Two sockets that are spliced to each other as soon as both are there and nothing is half received."""

    def __init__(self) -> None:
        self.legs: list[tuple[dict[str, Any], Any]] = []
        self.meters = [Meter(), Meter()]
        self.full = asyncio.Event()


pairs: dict[bytes, Pair] = {}


async def do_splice(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Splice the two sockets that ask for the same name; the end of one closes the other."""
    await accept(send)
    pair = pairs.setdefault(scope["query_string"], Pair())
    number = len(pair.legs)
    pair.legs.append((scope, send))
    if number:
        pair.full.set()
    await pair.full.wait()
    here, there = (
        pair.legs[i][0]["extensions"][SPLICE_EXTENSION]["connection"] for i in (number, 1 - number)
    )
    peer_send = pair.legs[1 - number][1]
    link = LocalLink(peer_send, pair.meters[number], time.monotonic, 2**20)
    while not here.splice(there, pair.meters[number]):
        message = await receive()
        if message["type"] == "websocket.disconnect":
            break
        say("ordinary", number=number)
        await link.forward(message)
    else:
        say("spliced", number=number)
        message = await receive()
    here.unsplice()
    there.unsplice()
    counted = {"frames": [m.frames for m in pair.meters], "nbytes": [m.nbytes for m in pair.meters]}
    say("ended", number=number, **counted, **{key: message[key] for key in ("code", "reason", "clean")})
    await peer_send({"type": "websocket.close", "code": 4410, "reason": "the peer left"})
