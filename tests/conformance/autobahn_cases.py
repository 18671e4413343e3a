"""Runs Autobahn's cases through a relay: `kosoku`'s fuzzing client on one leg, an echo client on the other.

A process of its own, as kosoku puts a stand-in for the `autobahn` package before the real one and replaces
`binascii.b2a_hex`. Takes the relay's URL, a token and how many cases may run at once; prints one JSON object,
`{case: [behaviour, behaviour of the close, in words]}`.
"""

import asyncio
import json
import os
import sys

import websockets
from kosoku import FailureError, run_fuzzingclient
from kosoku.cases import CASES
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

COMPRESSION = ("12.", "13.")
"""The only cases left out: the relay passes frames on, so it can't agree on compression with one leg."""


async def echo(peer: ClientConnection) -> None:
    """Send each message back as it is, until the connection ends, however it does."""
    try:
        async for message in peer:
            await peer.send(message)
    except ConnectionClosed:
        pass


async def run(url: str, token: str, case: str) -> list[str]:
    """One case in a session of its own, in which the echo client waits already."""
    leg = f"{url}/relay/autobahn-{case}?token={token}"
    async with websockets.connect(leg, compression=None, max_size=None, ping_interval=None) as peer:
        echoing = asyncio.create_task(echo(peer))
        try:
            results = await run_fuzzingclient(leg, [case])
        except FailureError as failure:
            results = failure.results
        await peer.close()
        await echoing
    (result,) = results
    words = f"{result.result} {result.result_close}"
    return [result.behavior.value, result.behavior_close.value, words]


async def main(url: str, token: str, at_once: int) -> None:
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
    os._exit(0)  # kosoku's own threads abort the interpreter's regular exit
