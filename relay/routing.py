"""What a project mounts in its router: `application` under `websocket`, `lifespan` under `lifespan`."""

from typing import Any

from channels.routing import URLRouter
from django.urls import re_path

from relay import servers, sessions
from relay.entry.consumers import RelayConsumer
from relay.entry.forwarded import ForwardedMiddleware
from relay.entry.tokens import TokenMiddleware
from relay.servers.lifespan import lifespan

__all__ = ["application", "lifespan", "websocket_urlpatterns"]


async def _drain(seconds: float) -> None:
    await sessions.of_this_process().drain(seconds)


servers.on_start(sessions.of_this_process)  # what an earlier process left is looked after at once
servers.on_drain(_drain)


async def not_found(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Refuse the upgrade: 404 where the server can say so, else its own refusal (403)."""
    await receive()
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close"})
        return
    body = b"No such path. WebSockets connect to /relay/{session_id}.\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": 404, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


# Django's `re_path` is typed for HTTP views; Channels' router calls these as ASGI applications.
_consumer: Any = TokenMiddleware(RelayConsumer.as_asgi())
_not_found: Any = not_found

websocket_urlpatterns = [
    # Whatever follows, newlines included: the consumer tells the client what a session id is.
    re_path(r"^relay/(?P<session_id>(?s:.*))$", _consumer),
    re_path(r"", _not_found),
]

# Known by their addresses, and by their own where a trusted balancer stands in front.
_router: Any = URLRouter(websocket_urlpatterns)
application = ForwardedMiddleware(_router)
