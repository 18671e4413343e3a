"""Sessions that drop: both peers meet again, as long as that leads anywhere."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relay.client.connection import Closed, RelayConnection
from relay.client.reconnecting import reconnecting
from tests.client.ends import SECONDS, Tap, alice, bob
from tests.client.test_command_line import Person, finish
from tests.relays import ROOT, Relay, free_port, running


@asynccontextmanager
async def beside(work: asyncio.Future[object]) -> AsyncIterator[None]:
    """Until the block is left, `work` goes on; its outcome is of no interest."""
    try:
        yield
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def until_the_end(peer: RelayConnection) -> list[bytes]:
    return [message async for message in peer]


async def test_work_is_done_anew_each_time_its_session_drops(daphne: Relay, session_id: str) -> None:
    """The applications tell each other what they have: nothing else knows what came over before the drop."""
    wanted = [b"%d" % n for n in range(30)]
    have: list[bytes] = []
    sessions = 0

    async def send(peer: RelayConnection) -> None:
        async for have_now in peer:
            if int(have_now) == len(wanted):
                return
            await peer.send(wanted[int(have_now)])

    async def take(peer: RelayConnection) -> list[bytes]:
        nonlocal sessions
        sessions += 1
        await peer.send(b"%d" % len(have))
        async for message in peer:
            have.append(message)
            if len(have) in (10, 20):
                tap.cut_after = len(tap.seen)
            await peer.send(b"%d" % len(have))
        return have

    async with asyncio.timeout(SECONDS), Tap(daphne.port) as tap:
        taken, _ = await asyncio.gather(
            reconnecting(lambda: bob(daphne.url, session_id), take),
            reconnecting(lambda: alice(tap.url, session_id), send),
        )
    assert taken == wanted
    assert sessions == 3


async def test_our_own_old_leg_that_still_holds_its_place_is_waited_for(
    daphne: Relay, session_id: str
) -> None:
    async def lose(peer: RelayConnection) -> list[bytes]:
        if not tap.lost:
            tap.lose()
        await peer.send(b"there?")
        await peer.end()
        return await until_the_end(peer)

    async def stay(peer: RelayConnection) -> list[bytes]:
        asked = [message async for message in peer]
        await peer.send(b"here")
        return asked

    async with asyncio.timeout(SECONDS), Tap(daphne.port) as tap:
        staying = asyncio.create_task(reconnecting(lambda: bob(daphne.url, session_id), stay))
        losing = asyncio.create_task(reconnecting(lambda: alice(tap.url, session_id), lose))
        await tap.shows(b"session_full")
        tap.release()
        assert await losing == [b"here"]
        assert await staying == [b"there?"]


async def test_a_session_that_is_full_from_the_start_is_left_to_those_in_it(
    daphne: Relay, session_id: str
) -> None:
    async def both(side: RelayConnection) -> list[bytes]:
        async with side as peer:
            met.release()
            return await until_the_end(peer)

    met = asyncio.Semaphore(0)
    pair = asyncio.gather(both(alice(daphne.url, session_id)), both(bob(daphne.url, session_id)))
    async with asyncio.timeout(SECONDS), beside(pair):
        for _ in range(2):
            await met.acquire()
        with pytest.raises(Closed) as refused:
            await reconnecting(lambda: alice(daphne.url, session_id), until_the_end)
        assert refused.value.code == 4409


@pytest.mark.parametrize("seconds", [0, 1])
async def test_sessions_that_drop_one_after_the_other_are_given_up(
    daphne: Relay, session_id: str, seconds: float
) -> None:
    tries = 0

    async def vanish() -> None:
        while True:
            with contextlib.suppress(Closed):
                async with bob(daphne.url, session_id) as peer:
                    peer._socket.transport.abort()

    async def attempt(peer: RelayConnection) -> list[bytes]:
        nonlocal tries
        tries += 1
        return await until_the_end(peer)

    async with asyncio.timeout(SECONDS), beside(asyncio.create_task(vanish())):
        with pytest.raises(Closed):
            await reconnecting(lambda: alice(daphne.url, session_id), attempt, seconds=seconds)
    assert tries == 1 if seconds == 0 else tries > 1


async def test_what_the_relay_refuses_is_not_tried_again(daphne: Relay, session_id: str) -> None:
    connections = 0

    def connect() -> RelayConnection:
        nonlocal connections
        connections += 1
        return alice(daphne.url, session_id, token="none")

    with pytest.raises(Closed) as refused:
        await reconnecting(connect, until_the_end)
    assert refused.value.code == 4401
    assert connections == 1


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read())
    writer.close()


async def said(process: "subprocess.Popen[bytes]", words: bytes) -> None:
    while words not in (line := await asyncio.to_thread(process.stderr.readline)):
        assert line, "it has ended"


async def ask(port: int, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(question)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_a_tunnel_outlasts_the_patience_of_the_relay(session_id: str, tmp_path: Path) -> None:
    """Left alone, nobody there or nothing to carry, `serve` and `forward` are there when they are wanted."""
    target = await asyncio.start_server(echo, "127.0.0.1", 0)
    name = f"127.0.0.1:{target.sockets[0].getsockname()[1]}"
    local = free_port()
    with running("daphne spliced", tmp_path / "relay", {"SESSION_TIMEOUT": "1"}) as relay:
        alice, bob = (Person(tmp_path / who, relay.url, session_id=session_id) for who in ("alice", "bob"))
        serving = bob.start("serve", "--allow", name, session_id)
        async with asyncio.timeout(60):
            await said(serving, b"the peer did not come in time; going on")
            forwarding = alice.start("forward", "-L", f"{local}:{name}", session_id)
            await said(forwarding, b"nothing passed either way for too long; going on")
            await said(forwarding, b"leads to")
            assert await ask(local, b"still there?") == b"still there?"
        for process in (forwarding, serving):
            process.terminate()
            await asyncio.to_thread(finish, process)
    target.close()


async def test_a_tunnel_is_there_for_one_peer_after_the_other(
    daphne: Relay, session_id: str, tmp_path: Path
) -> None:
    """Each end of it may be stopped and started again, in order or not, and the other one goes on."""
    target = await asyncio.start_server(echo, "127.0.0.1", 0)
    name = f"127.0.0.1:{target.sockets[0].getsockname()[1]}"
    local = free_port()
    alice, bob = (Person(tmp_path / who, daphne.url, session_id=session_id) for who in ("alice", "bob"))
    serve, forward = ("serve", "--allow", name, session_id), ("forward", "-L", f"{local}:{name}", session_id)
    serving, forwarding = bob.start(*serve), alice.start(*forward)
    async with asyncio.timeout(60):
        await said(forwarding, b"leads to")
        assert await ask(local, b"first") == b"first"
        forwarding.terminate()
        await asyncio.to_thread(finish, forwarding)
        await said(serving, b"the peer left; waiting for the next one")
        forwarding = alice.start(*forward)
        await said(forwarding, b"leads to")
        assert await ask(local, b"second") == b"second"
        serving.kill()
        await asyncio.to_thread(finish, serving)
        await said(forwarding, b"the peer's connection dropped; going on from there")
        serving = bob.start(*serve)
        await said(forwarding, b"leads to")
        assert await ask(local, b"third") == b"third"
    for process in (forwarding, serving):
        process.terminate()
        await asyncio.to_thread(finish, process)
    target.close()


@pytest.mark.system
@pytest.mark.parametrize("speaks", [True, False], ids=["sending", "listening"])
def test_a_network_that_is_gone_without_a_word_is_noticed(speaks: bool, tmp_path: Path) -> None:
    """As when a laptop changes networks: no packet arrives any more, and nothing says so.

    In a network of its own (a Linux namespace), whose only interface is then taken down. Without a user
    timeout the kernel sends again for a quarter of an hour.
    """
    command = [sys.executable, "-m", "tests.client.gone", str(tmp_path), str(speaks)]
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", *command], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"the connection to the relay dropped\n"
