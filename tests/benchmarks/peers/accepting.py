"""The least that a WebSocket costs on Channels: a consumer that accepts, without token, layer or peer.

An ASGI application for stock Daphne.
"""

import django
from django.conf import settings

settings.configure(SECRET_KEY="bench", ALLOWED_HOSTS=["127.0.0.1"], INSTALLED_APPS=["channels"])
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402 - needs the settings
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

application = ProtocolTypeRouter(
    {"websocket": URLRouter([path("relay/<str:session_id>", AsyncWebsocketConsumer.as_asgi())])}
)
