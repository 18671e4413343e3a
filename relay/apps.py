"""The Django app's entry."""

import sys

from django.apps import AppConfig


class RelayConfig(AppConfig):
    """Registers the system checks, and keeps tokens out of the logs of servers."""

    name = "relay"
    verbose_name = "Relay"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from relay import (
            checks,  # noqa: F401 - importing it registers the checks
            logs,
        )

        # Here, and not in a project's settings: whoever mounts the app has it, and its logging is configured.
        logs.install()

        if sys.argv[1:2] == ["runserver"]:
            # It looks up its server class before it imports the ASGI application.
            from relay.servers import daphne

            daphne.install()
