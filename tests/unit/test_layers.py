"""The channel layer in memory costs a leg as much as any other, however many there are."""

import time

import pytest
from channels.layers import InMemoryChannelLayer
from django.conf import settings

from relay.links.memory_layer import CLEAN_SECONDS, MemoryChannelLayer


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When Channels' layer went through all there is."""
    found: list[float] = []
    original = InMemoryChannelLayer._clean_expired

    def watched(layer: InMemoryChannelLayer) -> None:
        found.append(time.monotonic())
        original(layer)

    monkeypatch.setattr(InMemoryChannelLayer, "_clean_expired", watched)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


async def test_what_has_expired_is_looked_for_once_a_second_and_not_for_each_leg(
    looks: list[float], clock: list[float]
) -> None:
    layer = MemoryChannelLayer()
    for number in range(100):
        await layer.send(f"leg-{number}", {"type": "x"})
        await layer.receive(f"leg-{number}")
        clock[0] += CLEAN_SECONDS / 50
    assert len(looks) == 2


async def test_what_has_expired_goes(clock: list[float]) -> None:
    layer = MemoryChannelLayer(expiry=60)
    await layer.group_add("group", "forgotten")
    await layer.send("forgotten", {"type": "old"})
    clock[0] += 61
    await layer.send("leg", {"type": "new"})
    assert (await layer.receive("leg"))["type"] == "new"
    assert "forgotten" not in layer.channels
    assert not layer.groups.get("group")


def test_the_project_has_it() -> None:
    assert settings.CHANNEL_LAYERS["default"]["BACKEND"] == "relay.links.memory_layer.MemoryChannelLayer"
