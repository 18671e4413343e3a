"""What `/ready` of a node says."""

import asyncio
import contextlib
from typing import Any

import httpx

from tests.relays import START_SECONDS, Relay


async def becomes(node: Relay, status: int, seconds: float = START_SECONDS) -> dict[str, Any]:
    """The answer of `/ready` when it has this status."""
    async with asyncio.timeout(seconds), httpx.AsyncClient(base_url=node.http_url, timeout=20) as http:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await http.get("/ready")
                if answer.status_code == status:
                    return answer.json()
            await asyncio.sleep(0.05)


async def all_ready(cluster: Any) -> None:
    """Returns when every node is ready."""
    await asyncio.gather(*(becomes(node, 200) for node in cluster.nodes))
