"""The whole life of a session, seen by real clients of a real server."""

import asyncio
import contextlib

import pytest
from websockets.exceptions import ConnectionClosed

from tests.behaviour.clients import closed, connect, drop, pair
from tests.behaviour.raw import RawClient
from tests.rows import booked
from tests.servers import wire
from tests.tokens import token


async def test_two_legs_of_one_session_receive_each_others_frames(relay, session_id):
    async with pair(relay, session_id) as (client, server):
        await client.send("ping")
        assert await server.recv() == "ping"
        await server.send(b"\x00pong")
        assert await client.recv() == b"\x00pong"
    await booked(relay, session_id, to_server=["ping"], to_client=[b"\x00pong"], close=(1000, ""))


async def test_text_and_binary_stay_what_they_are_and_empty_frames_pass(relay, session_id):
    frames = ["", b"", "ünïcödé \U0001f980", b"\xff\xfe", "a" * 70_000, bytes(70_000)]
    async with pair(relay, session_id) as (client, server):
        for frame in frames:
            await client.send(frame)
        assert [await server.recv() for _ in frames] == frames
    await booked(relay, session_id, to_server=frames, to_client=[])


async def test_a_message_in_fragments_arrives_whole(relay, session_id):
    async with pair(relay, session_id) as (client, server):
        await client.send(["one ", "", "two ", "three"])
        assert await server.recv() == "one two three"
    await booked(relay, session_id, to_server=["one two three"], to_client=[])


async def test_the_largest_message_passes(relay, session_id):
    largest = b"x" * relay.max_message_bytes
    async with pair(relay, session_id) as (client, server):
        await client.send(largest)
        assert await server.recv() == largest
    await booked(relay, session_id, to_server=[largest], to_client=[])


async def test_frames_before_the_peer_are_kept_in_order_and_delivered_first(relay, session_id):
    sent = [*map(str, range(50)), "after"]
    async with connect(relay, session_id) as client:
        for text in sent[:-1]:
            await client.send(text)
        async with connect(relay, session_id) as server:
            await client.send(sent[-1])
            assert [await server.recv() for _ in sent] == sent
    await booked(relay, session_id, to_server=sent, to_client=[])


async def test_frames_before_the_peer_are_delivered_though_nothing_follows_them(relay, session_id):
    async with connect(relay, session_id) as client:
        await client.send("hello")
        await asyncio.wait_for(await client.ping(), 5)  # the relay has read what came before
        async with connect(relay, session_id) as server:
            assert await server.recv() == "hello"
    await booked(relay, session_id, to_server=["hello"], to_client=[])


async def test_more_than_the_relay_keeps_before_the_peer_is_delivered_too(relay, session_id):
    """Past the limit the relay stops reading that socket: its client waits, nothing is lost."""
    frames = [bytes([number]) * 50_000 for number in range(100)]
    async with connect(relay, session_id) as client:
        sending = asyncio.create_task(_send_all(client, frames))
        async with connect(relay, session_id) as server:
            assert [await server.recv() for _ in frames] == frames
            await sending
    await booked(relay, session_id, to_server=frames, to_client=[])


async def _send_all(socket, frames):
    for frame in frames:
        await socket.send(frame)


async def test_one_token_used_twice_without_a_role_pairs(relay, session_id):
    one = token()
    async with connect(relay, session_id, one) as client, connect(relay, session_id, one) as server:
        await client.send("hi")
        assert await server.recv() == "hi"
    await booked(relay, session_id, to_server=["hi"], to_client=[])


async def test_roles_come_from_the_token(relay, session_id):
    first = token(role="server")
    second = token(role="client", sub="bob")
    async with connect(relay, session_id, first) as server:
        async with connect(relay, session_id, second) as client:
            await client.send("four")
            assert await server.recv() == "four"
        assert (await closed(server))[0] == 1000
    await booked(relay, session_id, to_server=["four"], to_client=[], reason="peer_left", close=(1000, ""))


async def test_a_third_leg_is_refused_and_the_two_go_on(relay, session_id):
    async with pair(relay, session_id) as (client, server):
        async with connect(relay, session_id) as third:
            assert await closed(third) == (4409, "session_full: both places of this session are taken")
        await client.send("still here")
        assert await server.recv() == "still here"
    await booked(relay, session_id, to_server=["still here"], to_client=[], close=(1000, ""))


async def test_another_subject_in_a_taken_role_is_refused(relay, session_id):
    mallory = token(role="client", sub="mallory")
    async with connect(relay, session_id, token(role="client")):
        await relay.opened(session_id)
        async with connect(relay, session_id, mallory) as other:
            code, reason = await closed(other)
    assert code == 4409
    assert reason.startswith("session_full: ")


@pytest.mark.parametrize(
    ("code", "reason"),
    [(1000, ""), (1000, "done"), (1001, ""), (1011, "sorry"), (3000, "x"), (4999, "ü" * 61)],
)
async def test_the_close_code_and_reason_of_one_peer_reach_the_other(relay, session_id, code, reason):
    async with pair(relay, session_id) as (client, server):
        await client.send("last words")
        await client.close(code, reason)
        assert await server.recv() == "last words"
        assert await closed(server) == (code, reason)
    told = {"reason": "peer_left", "close": (code, reason)}
    await booked(relay, session_id, to_server=["last words"], to_client=[], **told)


async def test_either_side_may_leave(relay, session_id):
    async with pair(relay, session_id) as (client, server):
        await server.close(4321, "bye")
        assert await closed(client) == (4321, "bye")
    await booked(relay, session_id, to_server=[], to_client=[], reason="peer_left", close=(4321, "bye"))


async def test_a_dropped_connection_closes_the_other_as_peer_lost(relay, session_id):
    async with pair(relay, session_id) as (client, server):
        await client.send("last words")
        await drop(client)
        assert await server.recv() == "last words"
        code, reason = await closed(server)
    assert code == 4410
    assert reason.startswith("peer_lost: ")
    row = await booked(relay, session_id, to_server=["last words"], to_client=[], reason="peer_lost")
    told = {leg["role"]: leg["close_code"] for leg in row["legs"]}
    assert told == {"client": None, "server": 4410}


async def test_bytes_before_and_after_both_have_met_add_up(relay, session_id):
    """What is kept for the peer goes another way than what comes when it's there; both are billed."""
    kept, later, back = b"k" * 100, b"l" * 3, b"b" * 7
    async with connect(relay, session_id, token(sub="alice", role="client")) as client:
        await client.send(kept)
        await asyncio.wait_for(await client.ping(), 5)  # the relay has it
        await relay.opened(session_id)
        async with connect(relay, session_id, token(sub="bob", role="server")) as server:
            assert await server.recv() == kept
            await client.send(later)
            assert await server.recv() == later
            await server.send(back)
            assert await client.recv() == back
    await booked(relay, session_id, to_server=[kept, later], to_client=[back])


@pytest.mark.parametrize("fragmented", [False, True], ids=["within a frame", "between fragments"])
async def test_who_drops_within_a_message_is_billed_for_the_whole_ones_of_the_same_read(
    relay, session_id, fragmented
):
    jwt = token(sub="alice", role="client")
    async with (
        RawClient(relay, session_id, jwt) as client,
        connect(relay, session_id, token(sub="bob", role="server")) as server,
    ):
        await relay.paired(session_id)
        await client.frame(wire.BINARY, b"before")
        assert await server.recv() == b"before"
        fragment, half = (
            wire.frame(wire.BINARY, bytes(50), fin=False),
            wire.frame(wire.BINARY, bytes(5000))[:999],
        )
        await client.raw(wire.frame(wire.TEXT, b"whole") + (fragment if fragmented else half))
        assert await server.recv() == "whole"
        client.writer.transport.abort()
        # Within a frame that is half forwarded no close frame can follow: the connection just ends.
        assert (await closed(server))[0] in (4410, 1006)
    await booked(relay, session_id, to_server=["before", "whole"], to_client=[], reason="peer_lost")


async def test_what_was_delivered_by_the_end_of_a_session_is_what_is_billed(relay, session_id):
    """The end comes amid a flood: whatever reaches the receiver is billed, and nothing else."""
    alice, bob = token(sub="alice", role="client"), token(sub="bob", role="server")
    async with connect(relay, session_id, alice) as client, connect(relay, session_id, bob) as server:
        await relay.paired(session_id)
        flooding = asyncio.create_task(_flood(client))
        received = [await server.recv() for _ in range(100)]
        async with connect(relay, session_id, alice):  # which replaces the first
            with contextlib.suppress(ConnectionClosed):
                while True:
                    received.append(await server.recv())
            assert server.close_code == 4411
        await asyncio.gather(flooding, return_exceptions=True)
    await booked(relay, session_id, to_server=received, to_client=[], reason="replaced")


async def _flood(socket) -> None:
    number = 0
    while True:
        await socket.send(b"%d" % number * 100)
        number += 1
        # Sending waits for room alone: to a relay that throws all away it would never let this loop read.
        await asyncio.sleep(0)


async def test_a_session_id_may_be_used_again_for_a_new_session(relay, session_id):
    uuids = set()
    for _ in range(2):
        async with pair(relay, session_id) as (client, server):
            await client.close()
            await closed(server)
        row = await booked(relay, session_id, to_server=[], to_client=[], close=(1000, ""), seen=uuids)
        uuids.add(str(row["session_uuid"]))
    assert len(uuids) == 2


async def test_a_participant_that_comes_back_replaces_its_old_leg_and_its_peer_pairs_again(relay, session_id):
    alice, bob = token(role="client", sub="alice"), token(role="server", sub="bob")
    async with (
        connect(relay, session_id, alice) as old,
        connect(relay, session_id, bob) as peer,
    ):
        await relay.paired(session_id)
        async with connect(relay, session_id, alice) as new:
            assert (await closed(old))[0] == 4411
            assert (await closed(peer))[0] == 4411
            async with connect(relay, session_id, bob) as again:
                await again.send("together again")
                assert await new.recv() == "together again"
    first = await booked(relay, session_id, to_server=[], to_client=[], reason="replaced")
    await booked(
        relay,
        session_id,
        to_server=[],
        to_client=["together again"],
        reason="peer_left",
        seen={str(first["session_uuid"])},
    )


async def test_a_leg_that_waits_alone_is_replaced_by_the_same_participant(relay, session_id):
    alice = token(role="client", sub="alice")
    async with connect(relay, session_id, alice) as old:
        await relay.opened(session_id)
        async with connect(relay, session_id, alice) as new:
            code, reason = await closed(old)
            assert code == 4411
            assert reason.startswith("replaced: ")
            async with connect(relay, session_id, token(sub="bob")) as peer:
                await peer.send("hi")
                assert await new.recv() == "hi"
    first = await booked(relay, session_id, to_server=[], to_client=[], reason="replaced")
    seen = {str(first["session_uuid"])}
    await booked(relay, session_id, to_server=[], to_client=["hi"], reason="peer_left", seen=seen)


async def test_a_ping_is_answered_by_the_relay_itself(relay, session_id):
    async with connect(relay, session_id) as client:
        await asyncio.wait_for(await client.ping(), 5)


async def test_twenty_sessions_at_once_keep_to_themselves(relay, session_id):
    async def one(number: int) -> None:
        async with pair(relay, f"{session_id}.{number}") as (client, server):
            for round_ in range(20):
                await client.send(f"{number} {round_}")
                assert await server.recv() == f"{number} {round_}"

    await asyncio.gather(*(one(number) for number in range(20)))
    for number in range(20):
        sent = [f"{number} {round_}" for round_ in range(20)]
        await booked(relay, f"{session_id}.{number}", to_server=sent, to_client=[])


async def test_hundred_clients_racing_for_one_session_make_one_pair(relay, session_id):
    sockets = await asyncio.gather(*(connect(relay, session_id) for _ in range(100)))
    try:
        waiting = [asyncio.create_task(_code(socket)) for socket in sockets]
        refused = asyncio.as_completed(waiting, timeout=20)
        assert {await next(refused) for _ in range(98)} == {4409}
        both = [socket for socket, task in zip(sockets, waiting, strict=True) if not task.done()]
        assert len(both) == 2
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*(socket.close() for socket in sockets))


async def _code(socket) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        await socket.recv()
    return caught.value.rcvd.code
