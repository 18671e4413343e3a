"""Runs Autobahn's cases through a relay: `kosoku`'s fuzzing client on one leg, an echo client on the other.

A process of its own, as kosoku puts a stand-in for the `autobahn` package before the real one and replaces
`binascii.b2a_hex`. Takes the relay's URL, a token and how many cases may run at once; prints one JSON object,
`{case: [behaviour, behaviour of the close, in words]}`.
"""

import asyncio
import json
import os
import sys

from kosoku import FailureError, run_fuzzingclient
from kosoku.cases import CASES
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

COMPRESSION = ("12.", "13.")
"""The only cases left out: the relay never agrees on an extension, so that frames pass as they are."""


class Echo(WSListener):
    """Sends each message back whole, however it was fragmented, until the connection ends.

    Not with `websockets`, which takes messages of no more than 4,096 fragments; there are cases of 65,536.
    """

    def __init__(self) -> None:
        self.kind = WSMsgType.BINARY
        self.parts: list[bytes] = []

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION):
            if frame.msg_type != WSMsgType.CONTINUATION:
                self.kind, self.parts = frame.msg_type, []
            self.parts.append(frame.get_payload_as_bytes())
            if frame.fin:
                transport.send(self.kind, b"".join(self.parts))


async def run(url: str, token: str, case: str) -> list[str]:
    """One case in a session of its own, in which the echo client waits already: so it's spliced, if it can
    be, before the first frame of the case."""
    leg = f"{url}/relay/autobahn-{case}?token={token}"
    peer, _ = await ws_connect(Echo, leg, max_frame_size=2**31 - 1)
    try:
        results = await run_fuzzingclient(leg, [case])
    except FailureError as failure:
        results = failure.results
    peer.disconnect()
    await peer.wait_disconnected()
    (result,) = results
    return [result.behavior.value, result.behavior_close.value, f"{result.result} {result.result_close}"]


async def main(url: str, token: str, at_once: int) -> None:
    """Run all cases, `at_once` at a time, and print what came of them."""
    cases = [case for case in CASES if not case.startswith(COMPRESSION)]
    places = asyncio.Semaphore(at_once)

    async def one(case: str) -> list[str]:
        async with places:
            return await run(url, token, case)

    outcomes = await asyncio.gather(*map(one, cases))
    json.dump(dict(zip(cases, outcomes, strict=True)), sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    sys.stdout.flush()
    os._exit(0)  # the regular exit aborts: kosoku's own threads still want the interpreter
