"""The ways in which a session can end, each as what makes it end and what both legs have to be told."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay.rules.closing import CloseReason
from relay.rules.frames import BINARY, TEXT
from tests.ends.clients import Client
from tests.ends.streams import closing, masked
from tests.frames_oracle import slice_frames, unmasked


@dataclass(frozen=True, slots=True)
class Kind:
    """One way. `end` makes the session of `first` and `second` end, or waits for it to."""

    name: str
    end: Callable[["Scene"], None]
    codes: tuple[int | None, int | None]
    """Of the first and the second leg; None for one that isn't told, as it has gone."""
    may_be_half: bool = False
    """Whether the second may get half a frame and then the end of TCP: the rest of it never came."""
    pushes: tuple[bool, bool] = (True, True)
    seconds: float = 0.3
    """How long it's busy at most before it is ended."""
    large: bool = False
    """Whether only large messages do: so many small ones are never under way that a receiver stalls."""
    environ: tuple[tuple[str, str], ...] = ()
    """What its relay is told, so that what has to time out does so soon."""


@dataclass(slots=True)
class Scene:
    """A busy session."""

    first: Client
    second: Client
    relay: Any
    session_id: str
    event: Callable[[str, str], None]
    """Sends the event that ends a session (by its id) for a reason."""
    come_back: Callable[[str], None]
    """Has the first participant of a session (by its id) connect again."""


def _by_event(reason: CloseReason) -> Callable[[Scene], None]:
    return lambda scene: scene.event(scene.session_id, reason)


def _close(scene: Scene) -> None:
    scene.first.say_last(closing(4001, "bye"))


def _nonsense(frame: bytes, cut: int | None = None) -> Callable[[Scene], None]:
    """The first leg sends this frame, or the beginning of it, after a whole message."""

    def send(scene: Scene) -> None:
        if frame[0] in (0x80 | BINARY, 0x80 | TEXT):
            scene.second.receives_last = unmasked(next(slice_frames(frame)))
        scene.first.say_last(frame[:cut], after_message=True)

    return send


def _wait(scene: Scene) -> None:
    """The relay does it by itself."""
    scene.first.told.wait(20)


def _half_a_frame(scene: Scene) -> None:
    _nonsense(masked(BINARY, bytes(100_000)), 50_000)(scene)
    _wait(scene)


def _stop_reading(scene: Scene) -> None:
    scene.second.reading.clear()
    _wait(scene)
    scene.second.reading.set()


INVALID_TEXT = masked(TEXT, b"fine so far " * 20_000 + b"\xff" + b"and more " * 20_000)
TOO_BIG = masked(BINARY, bytes(1024 * 1024 + 1))

CLOSE_SECONDS = ("RELAY_CLOSE_SECONDS", "4")
"""Less than by default, so that a frame that nobody ends is given up soon."""

KINDS = [
    Kind("operator", _by_event(CloseReason.CLOSED_BY_OPERATOR), (4499, 4499)),
    Kind("quota", _by_event(CloseReason.QUOTA_EXCEEDED), (4429, 4429)),
    Kind("replaced", lambda scene: scene.come_back(scene.session_id), (4411, 4411)),
    Kind("drain", lambda scene: scene.relay.process.terminate(), (1012, 1012)),
    Kind("longest duration", _wait, (4414, 4414), environ=(("RELAY_MAX_SESSION_SECONDS", "2"),)),
    Kind(
        "idle, in a frame",
        _half_a_frame,
        (4412, 4412),
        pushes=(True, False),
        may_be_half=True,
        environ=(("SESSION_TIMEOUT", "1"), CLOSE_SECONDS),
    ),
    Kind(
        "stalled",
        _stop_reading,
        (4413, 4413),
        pushes=(True, False),
        large=True,
        environ=(("RELAY_STALL_SECONDS", "1"),),
    ),
    Kind("peer's close", _close, (4001, 4001)),
    Kind("peer's drop", lambda scene: scene.first.drop(), (None, 4410), may_be_half=True),
    Kind("reserved bit", _nonsense(b"\xf2\x80abcd"), (1002, 4410)),
    Kind("invalid text", _nonsense(INVALID_TEXT), (1007, 4410), may_be_half=True),
    Kind("too big", _nonsense(TOO_BIG, 100), (1009, 1009)),
]


def be_busy(kind: Kind, draw: random.Random) -> None:
    """Let a session be busy for a while, so that its end comes anywhere in its stream."""
    time.sleep(draw.uniform(0.02, kind.seconds))
