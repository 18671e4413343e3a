"""The Django app's entry."""

from django.apps import AppConfig


class RelayConfig(AppConfig):
    """Registers the system checks."""

    name = "relay"
    verbose_name = "Relay"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from relay import checks  # noqa: F401 - importing it registers the checks
