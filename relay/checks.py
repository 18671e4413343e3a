"""System checks: what a project that mounts the relay may have forgotten. Ids are stable."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from relay import conf, logs

MIN_SECRET_KEY_BYTES = 32
"""Shortest key for HS256: the length of its hash (RFC 7518 section 3.2)."""


OF_ONE_PROCESS = (
    "relay.links.memory_layer.MemoryChannelLayer",
    "relay.layers.MemoryChannelLayer",  # where it was before
    "channels.layers.InMemoryChannelLayer",
)
"""Channel layers that reach no other process."""


@register(Tags.compatibility)
def settings_are_usable(**_: Any) -> list[CheckMessage]:
    """relay.E001: `RELAY` has an unknown or malformed entry."""
    try:
        conf.current()
    except conf.SettingError as error:
        return [Error(f"RELAY: {error}", hint="See relay.conf.RelaySettings.", id="relay.E001")]
    return []


@register(Tags.compatibility)
def there_is_a_channel_layer(**_: Any) -> list[CheckMessage]:
    """relay.E002: no default channel layer, without which a session can't be closed from outside."""
    if "default" in getattr(settings, "CHANNEL_LAYERS", {}):
        return []
    hint = "Add a default channel layer; relay.links.memory_layer.MemoryChannelLayer serves a single process."
    return [Error("CHANNEL_LAYERS has no default.", hint=hint, id="relay.E002")]


@register(Tags.compatibility)
def nodes_can_reach_each_other(**_: Any) -> list[CheckMessage]:
    """relay.E003: sessions are shared through Redis, but frames would not leave the process."""
    layer = getattr(settings, "CHANNEL_LAYERS", {}).get("default", {}).get("BACKEND", "")
    try:
        redis_url = conf.current().redis_url
    except conf.SettingError:
        return []  # that is E001
    if not redis_url or layer not in OF_ONE_PROCESS:
        return []
    hint = (
        "Use a layer of channels_redis, or leave REDIS_URL (redis_url in RELAY) empty for one process alone."
    )
    return [Error("REDIS_URL is set, and the channel layer is in memory.", hint=hint, id="relay.E003")]


@register(Tags.compatibility)
def the_admin_has_its_looks(**_: Any) -> list[CheckMessage]:
    """relay.E004: the relay's pages in the admin need django-unfold before it."""
    installed = [name.removesuffix(".apps.BasicAppConfig") for name in settings.INSTALLED_APPS]
    if "django.contrib.admin" not in installed:
        return []
    if "unfold" in installed[: installed.index("django.contrib.admin")]:
        return []
    hint = "Put unfold before django.contrib.admin in INSTALLED_APPS."
    return [Error("The relay's pages in the admin need django-unfold.", hint=hint, id="relay.E004")]


@register(Tags.security)
def the_secret_key_is_long_enough(**_: Any) -> list[CheckMessage]:
    """relay.W001: the key that signs HS256 tokens is shorter than its hash, so it can be guessed."""
    algorithm = getattr(settings, "SIMPLE_JWT", {}).get("ALGORITHM", "HS256")
    if not algorithm.startswith("HS") or len(settings.SECRET_KEY.encode()) >= MIN_SECRET_KEY_BYTES:
        return []
    return [
        Warning(
            f"SECRET_KEY is shorter than {MIN_SECRET_KEY_BYTES} bytes, too short for {algorithm} tokens.",
            hint="Make one with: python -c 'import secrets; print(secrets.token_urlsafe(48))'",
            id="relay.W001",
        )
    ]


@register(Tags.security)
def no_log_has_tokens(**_: Any) -> list[CheckMessage]:
    """relay.W002: a server's logger has lost the filter that keeps tokens out, or never took it."""
    unguarded = logs.unguarded()
    if not unguarded:
        return []
    return [
        Warning(
            f"Tokens in queries and headers may be logged by {', '.join(unguarded)}.",
            hint="Call relay.logs.install() after whatever takes filters off these loggers.",
            id="relay.W002",
        )
    ]
