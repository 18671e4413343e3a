"""The relay as the Channels tutorial would have it: a group per session, each frame sent to the group.

An ASGI application for stock Daphne. BENCH_LAYER names the channel layer (memory, pubsub, core), and
BENCH_REDIS_URL the broker of the latter two.
"""

import os
from typing import Any

import django
from django.conf import settings

LAYERS = {
    "memory": "channels.layers.InMemoryChannelLayer",
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "core": "channels_redis.core.RedisChannelLayer",
}
_layer = os.environ.get("BENCH_LAYER", "memory")
_config = {} if _layer == "memory" else {"CONFIG": {"hosts": [os.environ["BENCH_REDIS_URL"]]}}

settings.configure(
    SECRET_KEY="bench",
    ALLOWED_HOSTS=["127.0.0.1"],
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={"default": {"BACKEND": LAYERS[_layer], **_config}},
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402 - needs the settings
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402


class GroupConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Joins the group of its session, sends what it receives to it, and hands on what others sent."""

    async def connect(self) -> None:
        self.group = f"session-{self.scope['url_route']['kwargs']['session_id']}"
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        event = {"type": "session.frame", "sender": self.channel_name, "text": text_data, "bytes": bytes_data}
        await self.channel_layer.group_send(self.group, event)

    async def session_frame(self, event: dict[str, Any]) -> None:
        if event["sender"] != self.channel_name:
            await self.send(text_data=event["text"], bytes_data=event["bytes"])


application = ProtocolTypeRouter(
    {"websocket": URLRouter([path("relay/<str:session_id>", GroupConsumer.as_asgi())])}
)
