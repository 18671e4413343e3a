"""`daphne tests.servers.ours:application`: the application on the relay's server."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lemcloud.settings")

import django

django.setup()

from django.conf import settings  # noqa: E402 - needs the environment

from relay import servers  # noqa: E402
from relay.servers import daphne  # noqa: E402
from tests.servers.applications import application, connections, say  # noqa: E402

__all__ = ["application"]

daphne.install(default_port=settings.PORT)


async def drain(seconds: float) -> None:
    """Close all that wait with a reason of our own."""
    say("drain", seconds=seconds)
    for send in connections:
        await send({"type": "websocket.close", "code": 1012, "reason": "come back"})


servers.on_drain(drain)
