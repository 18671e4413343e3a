"""The ASGI application: `daphne lemcloud.asgi:application`."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lemcloud.settings")

from channels.routing import ProtocolTypeRouter
from django.conf import settings
from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from relay.entry.forwarded import ForwardedMiddleware  # noqa: E402 - needs Django set up
from relay.routing import application as relay_application  # noqa: E402 - needs Django set up
from relay.routing import lifespan  # noqa: E402 - needs Django set up
from relay.servers import daphne  # noqa: E402

# Daphne's command line imports this module before it looks up its server class and default port.
daphne.install(default_port=settings.PORT)

application = ProtocolTypeRouter(
    {"http": ForwardedMiddleware(django_application), "websocket": relay_application, "lifespan": lifespan}
)
