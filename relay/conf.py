"""The relay's settings: each typed, with its unit, its bounds and the reason for its default."""

import difflib
from collections.abc import Mapping
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

KIB = 1024
MIB = 1024 * KIB


class SettingError(ValueError):
    """A setting that can't be used. The text is one line: the variable, what was given, what is expected."""


class RelaySettings(BaseModel):
    """What an operator may set. Field `x` is read from the variable in its `alias`.

    Durations are seconds (fractions allowed), sizes are bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    session_timeout: float = Field(
        300,
        gt=0,
        alias="SESSION_TIMEOUT",
        description="Seconds a leg waits for its peer, and seconds without a frame either way before a pair "
        "is closed. 300: longer than a phone's network change, shorter than a forgotten tab.",
    )
    max_session_seconds: float = Field(
        86_400,
        gt=0,
        alias="RELAY_MAX_SESSION_SECONDS",
        description="Longest duration of a session, in seconds. 86400: a day, what Daphne allows a socket.",
    )
    max_message_bytes: int = Field(
        MIB,
        ge=125,
        le=256 * MIB,
        alias="RELAY_MAX_MESSAGE_BYTES",
        description="Largest message, in bytes of payload over all its fragments. 1048576: Daphne's own cap.",
    )
    pending_bytes: int = Field(
        64 * KIB,
        ge=0,
        le=16 * MIB,
        alias="RELAY_PENDING_BYTES",
        description="Bytes of frames kept for a peer that has not come yet; past it the relay stops reading "
        "that socket. 65536: room for a handshake and a greeting, not for a file.",
    )
    max_token_bytes: int = Field(
        4 * KIB,
        ge=256,
        le=64 * KIB,
        alias="RELAY_MAX_TOKEN_BYTES",
        description="Longest token that is looked at, in bytes. 4096: several times any real one, and half "
        "of what HTTP servers commonly allow a line.",
    )
    read_high_bytes: int = Field(
        256 * KIB,
        ge=KIB,
        alias="RELAY_READ_HIGH_BYTES",
        description="Daphne: bytes received and not yet taken by the application at which reading a socket "
        "pauses. 262144: four reads of the reactor.",
    )
    read_low_bytes: int = Field(
        64 * KIB,
        ge=0,
        alias="RELAY_READ_LOW_BYTES",
        description="Daphne: bytes not yet taken at which reading goes on. 65536: one read of the reactor.",
    )
    write_high_bytes: int = Field(
        64 * KIB,
        ge=KIB,
        alias="RELAY_WRITE_HIGH_BYTES",
        description="Daphne: bytes of one socket that the kernel has not taken at which its sender waits. "
        "65536: the kernel's own buffer is what keeps the socket busy; more here is only copied about.",
    )
    write_low_bytes: int = Field(
        16 * KIB,
        ge=0,
        alias="RELAY_WRITE_LOW_BYTES",
        description="Daphne: bytes not yet taken by the kernel at which a waiting sender goes on. 16384: it "
        "is awake again before the rest is gone.",
    )
    splice: bool = Field(
        True,
        alias="RELAY_SPLICE",
        description="Daphne: whether frames of two legs on one process go straight from socket to socket. "
        "On; off is for tests and for finding out whether a problem lies there.",
    )
    admit_seconds: float = Field(
        5,
        gt=0,
        alias="RELAY_ADMIT_SECONDS",
        description="Seconds that the backends needed to admit a leg may take before it is refused as "
        "unavailable. 5: a client retries sooner than a person gives up.",
    )
    stall_seconds: float = Field(
        30,
        gt=0,
        alias="RELAY_STALL_SECONDS",
        description="Seconds in which a receiver takes nothing while data waits for it, after which the "
        "session ends. 30: a radio's longest usual outage.",
    )
    close_seconds: float = Field(
        5,
        gt=0,
        alias="RELAY_CLOSE_SECONDS",
        description="Seconds a close may take to deliver what was accepted before it and to finish the "
        "closing handshake. 5: a few round trips over a bad network.",
    )
    drain_seconds: float = Field(
        10,
        gt=0,
        alias="RELAY_DRAIN_SECONDS",
        description="Seconds from SIGTERM to the exit at the latest. Live sessions go on until twice "
        "RELAY_CLOSE_SECONDS before its end (time to close them and to write their records), so a longer "
        "one drains gently. 10: close at once, as container engines wait 10 s before they kill.",
    )

    trusted_proxies: str = Field(
        "",
        alias="RELAY_TRUSTED_PROXIES",
        description="Balancers whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses and "
        "networks like 10.0.0.0/8, comma-separated. Empty: nobody's, as anyone can send these headers.",
    )
    redis_url: str = Field(
        "",
        alias="REDIS_URL",
        description="The Redis or Valkey that makes several processes one relay. Empty: one process alone.",
    )
    node_seconds: float = Field(
        15,
        ge=1,
        alias="RELAY_NODE_SECONDS",
        description="Seconds after which a node that died no longer holds a session id. 15: three renewals, "
        "two of which may be lost. A fifth of it passes before legs are let in when Redis comes back empty.",
    )
    link_seconds: float = Field(
        15,
        ge=1,
        alias="RELAY_LINK_SECONDS",
        description="Seconds without a word from the other node after which a session across two nodes "
        "ends. 15: a restart of Redis with time to reconnect, and not longer than a person waits.",
    )
    link_window_bytes: int = Field(
        MIB,
        ge=64 * KIB,
        le=64 * MIB,
        alias="RELAY_LINK_WINDOW_BYTES",
        description="Bytes under way from one node to the other, per session and direction: what the sender "
        "keeps, Redis holds and the receiver has not taken. 1048576: four batches, 200 MB/s at 5 ms.",
    )
    link_batch_bytes: int = Field(
        256 * KIB,
        ge=KIB,
        le=64 * MIB,
        alias="RELAY_LINK_BATCH_BYTES",
        description="Payload bytes that go to another node in one message; a larger frame goes alone. "
        "262144: about six commands to Redis per MiB, beyond which larger ones gain little.",
    )

    checkpoint_seconds: float = Field(
        10,
        ge=0.1,
        le=3600,
        alias="RELAY_CHECKPOINT_SECONDS",
        description="Seconds between two records of a live session whose counts changed: what is missing at "
        "most after a process was killed. 10: 10,000 sessions are 1,000 rows a second.",
    )
    ledger_batch_seconds: float = Field(
        0.1,
        ge=0,
        le=10,
        alias="RELAY_LEDGER_BATCH_SECONDS",
        description="Seconds a usage record waits for others to share its transaction. 0.1: ten transactions "
        "a second at most, and no more than that is lost when the process is killed.",
    )
    ledger_exit_seconds: float = Field(
        3,
        ge=0,
        le=300,
        alias="RELAY_LEDGER_EXIT_SECONDS",
        description="Seconds an exiting process waits for its last usage records to be written. 3: what is "
        "left of the 10 s a container engine waits, after the sockets are closed.",
    )

    ledger_write_seconds: float = Field(
        5,
        gt=0,
        le=300,
        alias="RELAY_LEDGER_WRITE_SECONDS",
        description="Seconds that the database may take for one batch of usage records before it counts as "
        "away and the records go to the spool. 5: many times what a thousand records take.",
    )
    spool_dir: str = Field(
        "",
        alias="RELAY_SPOOL_DIR",
        description="Folder where usage records are kept while the database is away. Empty: `spool/` in "
        "RELAY_VAR_DIR; in a project of your own without one they wait in memory.",
    )
    spool_bytes: int = Field(
        256 * MIB,
        ge=64 * KIB,
        alias="RELAY_SPOOL_BYTES",
        description="Most that one process keeps in its spool; what has no room waits in memory. 268435456: "
        "about 200,000 ended sessions.",
    )
    node_lost_seconds: float = Field(
        60,
        gt=0,
        alias="RELAY_NODE_LOST_SECONDS",
        description="Seconds without a sign of life in the database after which a node's sessions are closed "
        "as node_lost by another one. 60: six checkpoints. More than twice RELAY_LINK_SECONDS and "
        "RELAY_CHECKPOINT_SECONDS: the other node of a session closes it sooner, with better figures.",
    )

    keep_usage_days: float = Field(
        35,
        ge=1,
        alias="RELAY_KEEP_USAGE_DAYS",
        description="Days for which an ended session's record is kept at least, exported or not. 35: as long "
        "as Stripe takes late usage. Within it every spool has to be replayed: one that came later could "
        "bring a session back that was exported and pruned.",
    )
    admin_export_rows: int = Field(
        100_000,
        ge=1,
        le=1_000_000,
        alias="RELAY_ADMIN_EXPORT_ROWS",
        description="Most sessions that one download from the admin holds; more are for export_usage. "
        "100000: about 25 MB, which the process holds in memory for as long as the download takes.",
    )

    console: bool | None = Field(
        None,
        alias="RELAY_CONSOLE",
        description="Whether there is a page at /console/. None: where neither DATABASE_URL nor REDIS_URL is "
        "set, as somebody is trying the relay out; what serves others shows strangers only what it has to.",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, given: str) -> str:
        networks(given)
        return given

    @model_validator(mode="after")
    def _a_node_is_lost_late(self) -> "RelaySettings":
        least = 2 * max(self.link_seconds, self.checkpoint_seconds)
        if self.node_lost_seconds <= least:
            raise SettingError(
                f"RELAY_NODE_LOST_SECONDS: got {self.node_lost_seconds:g}; expected more than {least:g}, "
                "which is twice the longer of RELAY_LINK_SECONDS and RELAY_CHECKPOINT_SECONDS"
            )
        return self

    @model_validator(mode="after")
    def _marks_are_in_order(self) -> "RelaySettings":
        for way in ("read", "write"):
            low, high = getattr(self, f"{way}_low_bytes"), getattr(self, f"{way}_high_bytes")
            if low > high:
                name = f"RELAY_{way.upper()}"
                raise SettingError(
                    f"{name}_LOW_BYTES: {low} is above {name}_HIGH_BYTES ({high}); expected at most that"
                )
        return self


def networks(text: str) -> list[IPv4Network | IPv6Network]:
    """Comma-separated addresses and networks. Raises `ValueError` for anything else."""
    try:
        return [ip_network(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ValueError(
            f"expected addresses and networks like 10.0.0.0/8, comma-separated ({error})"
        ) from None


def variable_of(field: str) -> str:
    """The environment variable of a field of `RelaySettings`."""
    return str(RelaySettings.model_fields[field].alias)


def from_environment(environ: Mapping[str, str], known: frozenset[str] = frozenset()) -> RelaySettings:
    """The settings that `environ` holds, defaults for the rest. An empty variable counts as not set.

    `known` are further `RELAY_` variables that the project itself reads. Raises `SettingError` for a
    malformed value and for a `RELAY_` variable that nobody reads (most often a typing error).
    """
    names = {variable_of(field) for field in RelaySettings.model_fields}
    for name in environ:
        if name.startswith("RELAY_") and name not in names | known:
            near = difflib.get_close_matches(name, names | known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see the README's table of settings"
            raise SettingError(f"{name}: no such setting; {hint}")
    return build({name: environ[name] for name in names if environ.get(name)})


def build(values: Mapping[str, Any]) -> RelaySettings:
    """Settings from field names or variables; raises `SettingError` with one line for the first bad one."""
    try:
        return RelaySettings.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise SettingError(str(first["ctx"]["error"])) from None
        name = str(first["loc"][0])
        name = variable_of(name) if name in RelaySettings.model_fields else name
        raise SettingError(f"{name}: got {first['input']!r}; {expectation(first['msg'])}") from None


def expectation(message: str) -> str:
    """What pydantic found wrong, in the words `expected ...`."""
    message = message.removeprefix("Value error, ").split(", unable to")[0]
    return message if message.startswith("expected") else message.replace("Input should be", "expected", 1)


@cache
def current() -> RelaySettings:
    """The settings in force: Django's `RELAY`, which is a `RelaySettings` or a dict of its fields.

    Read once for the life of the process; a test that changes `RELAY` calls `current.cache_clear()`.
    """
    from django.conf import settings

    given = getattr(settings, "RELAY", {})
    return given if isinstance(given, RelaySettings) else build(given)
