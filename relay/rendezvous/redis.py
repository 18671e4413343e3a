"""The rendezvous of several nodes: Redis or Valkey, one script per operation.

A seat is a key with a lifetime of `node_seconds`, which its node renews: a dead node holds no seat longer.
Keys are `relay:{bucket}:...`; all keys of one script have the same bucket, and so, in a Redis
Cluster, the same slot.

When Redis is away, `join` raises `Away`; seats that were to be freed are freed when it's back. When it comes
back empty, nobody is let in until every node has had the time to take its seats again: a bucket without the
key `known` is `settling` for a fifth of `node_seconds` from the first time that anyone asks it.
"""

import asyncio
import hashlib
import json
import logging
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError

from relay.rendezvous import Arrival, Away, Full, Placement
from relay.rules.roles import Role

logger = logging.getLogger(__name__)

BUCKETS = 16
"""Parts into which session ids are spread: more than a Redis Cluster of usual size has shards."""

RENEWALS = 3
"""How often a seat is renewed in its lifetime, so that two failures in a row don't lose it."""

TICKS = 15
"""How often per `node_seconds` it's looked what is due: renewing, freeing what could not be freed."""

SETTLING_SHARE = 5
"""`node_seconds` by this is how long an empty bucket settles: three ticks of every node."""

CONNECTIONS = 16
"""To Redis at most: a burst of joins shares them, and waits its turn."""

LOT = 100
"""Seats renewed in one round trip: about a millisecond of work for the node."""

_KNOWN = """
-- KEYS: known, settling. ARGV: milliseconds to settle. Gives 1 while the bucket settles.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SET', KEYS[1], 1)
  redis.call('SET', KEYS[2], 1, 'PX', ARGV[1])
end
return redis.call('EXISTS', KEYS[2])
"""

_JOIN = """
-- KEYS: known, settling, client, server. ARGV: seat to take (JSON), role or '', lifetime and settling in ms.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SET', KEYS[1], 1)
  redis.call('SET', KEYS[2], 1, 'PX', ARGV[4])
end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'settling'} end
local keys = {client = KEYS[3], server = KEYS[4]}
local other = {client = 'server', server = 'client'}
local seats = {}
for role, key in pairs(keys) do
  local value = redis.call('GET', key)
  if value then seats[role] = cjson.decode(value) end
end
local mine = cjson.decode(ARGV[1])
local role = ARGV[2]

local function take(role, session, replaced)
  mine.session = session
  local peer = not replaced and seats[other[role]]
  if peer then
    mine.paired, peer.paired = true, true
    redis.call('SET', keys[other[role]], cjson.encode(peer), 'KEEPTTL')
  end
  redis.call('SET', keys[role], cjson.encode(mine), 'PX', ARGV[3])
  return {'placed', role, session, peer and peer.leg or '', peer and peer.channel or '', replaced or ''}
end

local function start_anew(role, replaced)
  mine.first = true
  if replaced then redis.call('DEL', KEYS[3], KEYS[4]) end
  return take(role, mine.session, replaced)
end

for taken, seat in pairs(seats) do
  if seat.leg == mine.leg then  -- the same command, sent twice
    -- Who came after the first leg makes itself known to it.
    if seat.first then return {'placed', taken, seat.session, '', '', ''} end
    return take(taken, seat.session)
  end
end
local seat = seats.client or seats.server
if not seat then return start_anew(role == '' and 'client' or role) end
if seat.paired and not (seats.client and seats.server) then  -- the other half died with its node
  return start_anew(role == '' and 'client' or role, seat.session)
end
if role == '' then
  if seats.client and seats.server then return {'full'} end
  role = seats.client and 'server' or 'client'
end
if seats[role] then
  local again = mine.named and seats[role].named and mine.subject and mine.subject == seats[role].subject
  if not again then return {'full'} end
  return start_anew(role, seats[role].session)
end
return take(role, seat.session)
"""

_LEAVE = """
-- KEYS: client, server. ARGV: session or '', leg or ''. Frees that session's seats, or that leg's alone.
for i, key in ipairs(KEYS) do
  local value = redis.call('GET', key)
  if value then
    local seat = cjson.decode(value)
    if seat.session == ARGV[1] then
      redis.call('DEL', key)
    elseif seat.leg == ARGV[2] then
      redis.call('DEL', key)
      local peer = redis.call('GET', KEYS[3 - i])
      if peer then
        peer = cjson.decode(peer)
        if peer.session == seat.session then
          peer.paired = false
          redis.call('SET', KEYS[3 - i], cjson.encode(peer), 'KEEPTTL')
        end
      end
    end
  end
end
return 1
"""

_REFRESH = """
-- KEYS: the seat, the other one. ARGV: seat (JSON), lifetime in ms. Gives 0 if another session has its place.
local mine = cjson.decode(ARGV[1])
local value = redis.call('GET', KEYS[1])
if value then
  local seat = cjson.decode(value)
  if seat.leg ~= mine.leg then return 0 end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
local other = redis.call('GET', KEYS[2])
if other and cjson.decode(other).session ~= mine.session then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


@dataclass(slots=True)
class _Seat:
    """A seat that a leg of this process holds."""

    session_id: str
    session: UUID
    role: Role
    value: dict[str, Any]  # as it is in Redis
    due: float  # when to renew it, in seconds of the event loop


class RedisRendezvous:
    """Keeps who sits where in the Redis at `url`. `node_seconds` is the lifetime of a seat.

    `answer_seconds` is how long Redis may take for one answer. Belongs to one event loop.
    """

    def __init__(self, url: str, node_seconds: float, answer_seconds: float) -> None:
        self.on_superseded: Callable[[UUID], None] = lambda session: None
        self._node_seconds = node_seconds
        self._lifetime = round(1000 * node_seconds)
        self._settling = round(1000 * node_seconds / SETTLING_SHARE)
        self._tick_seconds = node_seconds / TICKS
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=answer_seconds,
            decode_responses=True,
            socket_timeout=answer_seconds,
            socket_connect_timeout=answer_seconds,
            socket_keepalive=True,
            # Once, for a connection that Redis closed since it was last used. So each script may run twice,
            # and each is written for that.
            retry=Retry(ConstantBackoff(0.05), 1),
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._known = self._redis.register_script(_KNOWN)
        self._join = self._redis.register_script(_JOIN)
        self._leave = self._redis.register_script(_LEAVE)
        self._refresh = self._redis.register_script(_REFRESH)
        self._seats: dict[UUID, _Seat] = {}  # by leg
        self._legs: dict[UUID, list[UUID]] = {}  # by session
        self._to_free: deque[tuple[str, str, str]] = deque()  # session id, session or '', leg or ''
        self._free_now = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self, session_id: str, arrival: Arrival) -> Placement:
        """See `Rendezvous.join`. While the place of `session_id` settles this waits for it."""
        self._start()
        seat = {
            "session": uuid4().hex,
            "leg": arrival.leg.hex,
            "channel": arrival.channel,
            "named": arrival.role is not None,
            "paired": False,
        }
        if arrival.subject is not None:
            # Only ever compared: no name has to lie in Redis, nor one that its JSON can't hold.
            name = arrival.subject.encode(errors="surrogatepass")
            seat["subject"] = hashlib.sha256(name).hexdigest()
        arguments = [json.dumps(seat), arrival.role or "", self._lifetime, self._settling]
        keys = [*_bucket_keys(_bucket(session_id)), *_seat_keys(session_id)]
        answer: list[str] = []
        try:
            while not answer or answer[0] == "settling":
                if answer:
                    await asyncio.sleep(self._tick_seconds)
                    answer = []
                await self._free_first(session_id)
                answer = await self._join(keys, arguments)
        except (RedisError, OSError) as error:
            raise Away(f"{type(error).__name__}: {error}") from error
        finally:
            if not answer:
                # Cancelled or failed: the script may have run all the same, or may run yet.
                self._free(session_id, leg=arrival.leg.hex)
        if answer[0] == "full":
            raise Full
        _, role, session, peer, peer_channel, replaced = answer
        placement = Placement(
            UUID(session),
            Role(role),
            UUID(peer) if peer else None,
            peer_channel,
            UUID(replaced) if replaced else None,
        )
        seat |= {"session": session, "paired": bool(peer), "first": not peer}
        due = asyncio.get_running_loop().time() + self._node_seconds / RENEWALS
        self._seats[arrival.leg] = _Seat(session_id, placement.session, placement.role, seat, due)
        self._legs.setdefault(placement.session, []).append(arrival.leg)
        return placement

    def paired(self, session: UUID) -> None:
        """See `Rendezvous.paired`."""
        for leg in self._legs.get(session, ()):
            self._seats[leg].value["paired"] = True

    def end(self, session_id: str, session: UUID) -> None:
        """See `Rendezvous.end`."""
        for leg in self._legs.pop(session, ()):
            del self._seats[leg]
        self._free(session_id, session=session.hex)

    async def check(self) -> None:
        """See `Rendezvous.check`."""
        await self._redis.ping()

    async def close(self) -> None:
        """See `Rendezvous.close`."""
        tasks, self._tasks = self._tasks, []
        while tasks:
            for task in tasks:
                task.cancel()
            # Again and again: one can get lost in the client library, and this would hang (seen).
            _, pending = await asyncio.wait(tasks, timeout=0.1)
            tasks = list(pending)
        with suppress(RedisError, OSError):
            await self._free_all()
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    # In the background

    def _start(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._renew()), asyncio.create_task(self._free_as_told())]

    def _free(self, session_id: str, *, session: str = "", leg: str = "") -> None:
        self._to_free.append((session_id, session, leg))
        self._free_now.set()

    async def _free_as_told(self) -> None:
        """Free seats as soon as they are given up; while Redis is away, when it's back."""
        while True:
            await self._free_now.wait()
            self._free_now.clear()
            try:
                await self._free_all()
            except (RedisError, OSError):
                await asyncio.sleep(self._tick_seconds)
                self._free_now.set()

    async def _free_first(self, session_id: str) -> None:
        """Whoever comes back at once must not find the seats of the session that it has just left."""
        for name, session, leg in list(self._to_free):
            if name == session_id:
                await self._leave(_seat_keys(session_id), [session, leg])

    async def _free_all(self) -> None:
        while self._to_free:
            lot = list(islice(self._to_free, LOT))
            async with self._redis.pipeline(transaction=False) as pipeline:
                for session_id, session, leg in lot:
                    await self._leave(_seat_keys(session_id), [session, leg], client=pipeline)
                await pipeline.execute()
            for _ in lot:
                self._to_free.popleft()

    async def _renew(self) -> None:
        """Renew each seat in time, and all of a bucket while it settles."""
        away = False
        while True:
            await asyncio.sleep(self._tick_seconds)
            try:
                await self._tick()
            except (RedisError, OSError) as error:
                if not away:
                    logger.warning("the rendezvous is away: %s: %s", type(error).__name__, error)
                away = True
            else:
                if away:
                    logger.info("the rendezvous is back")
                away = False

    async def _tick(self) -> None:
        settling = await self._settling_buckets()
        now = asyncio.get_running_loop().time()
        due = [
            (leg, seat)
            for leg, seat in self._seats.items()
            if seat.due <= now or (settling and _bucket(seat.session_id) in settling)
        ]
        for start in range(0, len(due), LOT):
            await self._renew_lot(due[start : start + LOT], now + self._node_seconds / RENEWALS)

    async def _renew_lot(self, lot: list[tuple[UUID, _Seat]], next_due: float) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for _, seat in lot:
                keys = _seat_keys(seat.session_id)
                own_first = keys if seat.role is Role.CLIENT else keys[::-1]
                await self._refresh(own_first, [json.dumps(seat.value), self._lifetime], client=pipeline)
            answers = await pipeline.execute()
        for (leg, seat), still_ours in zip(lot, answers, strict=True):
            seat.due = next_due
            if leg not in self._seats:
                # It ended meanwhile; whichever came first, the seat has to be free in the end.
                self._free(seat.session_id, leg=leg.hex)
            elif not still_ours:
                self.on_superseded(seat.session)

    async def _settling_buckets(self) -> frozenset[int]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for bucket in range(BUCKETS):
                await self._known(_bucket_keys(bucket), [self._settling], client=pipeline)
            answers = await pipeline.execute()
        return frozenset(bucket for bucket, settling in enumerate(answers) if settling)


def _bucket(session_id: str) -> int:
    return zlib.crc32(session_id.encode()) % BUCKETS


def _bucket_keys(bucket: int) -> list[str]:
    return [f"relay:{{{bucket}}}:known", f"relay:{{{bucket}}}:settling"]


def _seat_keys(session_id: str) -> list[str]:
    prefix = f"relay:{{{_bucket(session_id)}}}:seat:{session_id}"
    return [f"{prefix}:client", f"{prefix}:server"]
