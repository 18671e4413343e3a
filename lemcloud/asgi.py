"""The ASGI application: `daphne lemcloud.asgi:application`."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lemcloud.settings")

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from relay.routing import application as relay_application  # noqa: E402 - needs Django set up

application = ProtocolTypeRouter({"http": django_application, "websocket": relay_application})
