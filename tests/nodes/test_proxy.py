"""The proxy itself: what it passes on unchanged, and that each of its faults is one."""

import asyncio
import time

import pytest
import redis.asyncio
from redis.exceptions import ConnectionError, TimeoutError

from tests.nodes.proxy import Faults, Proxy, command, read_value

MESSAGES = 200


@pytest.fixture
def proxy(redis_url):
    with Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        yield proxy


def client(proxy: Proxy, protocol: int = 3) -> redis.asyncio.Redis:
    return redis.asyncio.Redis(
        host=proxy.host, port=proxy.port, protocol=protocol, retry=None, socket_timeout=10
    )


async def published(proxy: Proxy, through: str, redis_url: str) -> list[int]:
    """Publish numbers, with the publisher or the subscriber behind the proxy; gives what arrives."""
    one, other = client(proxy), redis.asyncio.Redis.from_url(redis_url)
    publisher, subscriber = (one, other) if through == "publisher" else (other, one)
    async with publisher, subscriber, subscriber.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("numbers")
        got = []
        await pubsub.get_message(timeout=10)  # the confirmation
        async with asyncio.timeout(20):
            for number in range(MESSAGES):
                await publisher.publish("numbers", number)
            proxy.faults = Faults()
            await publisher.publish("numbers", "end")
            while not got or got[-1] != b"end":
                message = await pubsub.get_message(timeout=10)
                if message:
                    got.append(message["data"])
    return [int(data) for data in got[:-1]]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_commands_replies_and_large_values_pass_unchanged(proxy, protocol):
    async with client(proxy, protocol) as through:
        value = bytes(range(256)) * 8192
        await through.set("large", value, ex=60)
        assert await through.get("large") == value
        assert await through.get("nothing") is None
        await through.hset("hash", mapping={"a": "1", "b": ""})
        assert await through.hgetall("hash") == {b"a": b"1", b"b": b""}
        assert await through.eval("return {1, {2, 'x'}, false}", 0) == [1, [2, b"x"], None]
        async with through.pipeline(transaction=True) as pipeline:
            assert await pipeline.incrby("n", 2).incrby("n", 3).delete("n").execute() == [2, 5, 1]


@pytest.mark.parametrize("through", ["publisher", "subscriber"])
async def test_without_faults_every_message_arrives_once(proxy, redis_url, through):
    assert await published(proxy, through, redis_url) == list(range(MESSAGES))
    assert (proxy.dropped, proxy.duplicated) == (0, 0)


@pytest.mark.parametrize("through", ["publisher", "subscriber"])
async def test_dropped_messages_are_missing_and_the_rest_in_order(proxy, redis_url, through):
    proxy.faults = Faults(drop=0.2)
    got = await published(proxy, through, redis_url)
    assert got == sorted(set(got))
    assert len(got) == MESSAGES - proxy.dropped < MESSAGES


@pytest.mark.parametrize("through", ["publisher", "subscriber"])
async def test_duplicated_messages_come_twice_in_a_row(proxy, redis_url, through):
    proxy.faults = Faults(duplicate=0.2)
    got = await published(proxy, through, redis_url)
    assert got == sorted(got)
    assert set(got) == set(range(MESSAGES))
    assert len(got) == MESSAGES + proxy.duplicated > MESSAGES


async def test_a_seed_says_which_messages_are_lost(redis_url):
    def losses(seed: int) -> list[bool]:
        proxy = Proxy(0, seed)
        proxy._loop.close()
        return [proxy._happens(0.3) for _ in range(50)]

    assert losses(1) == losses(1) != losses(2)


async def test_a_delayed_value_is_late_and_values_keep_their_order(proxy, redis_url):
    proxy.faults = Faults(jitter_seconds=0.05)
    async with client(proxy) as through:
        await through.ping()
        started = time.monotonic()
        for number in range(20):
            await through.rpush("late", number)
        # 40 delays of 25 ms in the mean.
        assert time.monotonic() - started > 0.3
        assert await through.lrange("late", 0, -1) == [b"%d" % number for number in range(20)]
        await through.delete("late")


async def test_a_cut_connection_is_lost_and_the_next_one_works(proxy):
    async with client(proxy) as through:
        await through.ping()
        await asyncio.to_thread(proxy.cut_connections)
        assert proxy.cut == 1
        with pytest.raises(ConnectionError):
            await through.ping()
        await through.ping()


async def test_cut_off_nobody_gets_through_until_let(proxy):
    async with client(proxy) as through:
        await through.ping()
        await asyncio.to_thread(proxy.cut_off)
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await through.ping()
        proxy.let_through()
        await through.ping()


async def test_what_is_held_arrives_when_released(proxy):
    async with client(proxy) as through:
        await through.ping()
        proxy.hold()
        waiting = asyncio.create_task(through.echo("held"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.3)
        proxy.release()
        assert await waiting == b"held"


async def test_a_proxy_whose_redis_is_away_closes_the_connection():
    with Proxy(1) as proxy:
        async with client(proxy) as through:
            with pytest.raises((ConnectionError, TimeoutError)):
                await through.ping()


async def test_values_are_read_to_their_end():
    raw = (
        command(b"PUBLISH", b"c", b"\r\n*")
        + b"%1\r\n+a\r\n*-1\r\n"
        + b"$-1\r\n"
        + b"~0\r\n"
        + b">1\r\n#t\r\n"
    )
    reader = asyncio.StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    values = [await read_value(reader) for _ in range(5)]
    assert b"".join(value for value, _ in values) == raw
    assert [said for _, said in values] == [[b"PUBLISH", b"c", b"\r\n*"], [b"a", b"-1"], b"-1", [], [b"t"]]
