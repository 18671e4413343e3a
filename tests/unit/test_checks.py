"""Promises of `relay.checks`: each finding has a stable id."""

import logging

import pytest
from django.core.checks import run_checks

from relay import conf


@pytest.fixture(autouse=True)
def fresh_settings():
    conf.current.cache_clear()
    yield
    conf.current.cache_clear()


def ids() -> set[str]:
    return {found.id for found in run_checks() if found.id.startswith("relay.")}


def test_the_project_itself_has_nothing_to_complain_about():
    assert not ids()


@pytest.mark.parametrize("given", [{"session_timout": 1}, {"session_timeout": "soon"}])
def test_bad_relay_settings_are_e001(settings, given):
    settings.RELAY = given
    assert ids() == {"relay.E001"}


def test_a_missing_channel_layer_is_e002(settings):
    settings.CHANNEL_LAYERS = {}
    assert ids() == {"relay.E002"}


def test_an_admin_without_unfold_before_it_is_e004(settings):
    installed = list(settings.INSTALLED_APPS)
    settings.INSTALLED_APPS = [name for name in installed if name != "django.contrib.admin"]
    assert not ids()
    settings.INSTALLED_APPS = [*(name for name in installed if name != "unfold"), "unfold"]
    assert "relay.E004" in ids()


def test_a_short_secret_key_is_w001(settings):
    settings.SECRET_KEY = "short"
    assert ids() == {"relay.W001"}


def test_a_short_secret_key_signs_nothing_where_tokens_are_asymmetric(settings):
    settings.SECRET_KEY = "short"
    settings.SIMPLE_JWT = {"ALGORITHM": "ES256"}
    assert not ids()


def test_redis_for_the_sessions_and_none_for_their_frames_is_e003(settings):
    settings.RELAY = {"redis_url": "redis://localhost"}
    assert ids() == {"relay.E003"}
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}}
    assert not ids()


def test_a_server_logger_without_its_filter_is_w002(monkeypatch):
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "filters", [])
    assert ids() == {"relay.W002"}


@pytest.mark.parametrize(
    ("key", "found"), [("k" * 31, {"relay.W001"}), ("k" * 32, set()), ("\u00e9" * 16, set())]
)
def test_a_secret_key_has_to_have_as_many_bytes_as_its_hash(settings, key, found):
    settings.SECRET_KEY = key
    assert ids() == found


@pytest.mark.parametrize(
    "layer",
    [
        "relay.links.memory_layer.MemoryChannelLayer",
        "relay.layers.MemoryChannelLayer",
        "channels.layers.InMemoryChannelLayer",
    ],
)
def test_a_channel_layer_of_one_process_is_enough_for_one_alone(settings, layer):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": layer}}
    assert not ids()
    settings.RELAY = {"redis_url": "redis://localhost"}
    conf.current.cache_clear()
    assert ids() == {"relay.E003"}


def test_unfold_may_be_installed_by_its_configuration(settings):
    settings.INSTALLED_APPS = [
        "unfold.apps.BasicAppConfig" if name == "unfold" else name for name in settings.INSTALLED_APPS
    ]
    assert not ids()
