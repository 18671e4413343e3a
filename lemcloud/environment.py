"""The project's own environment variables (the relay's are in `relay.conf`): typed, with clear errors."""

import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import dj_database_url
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from relay.conf import SettingError, expectation

VARIABLES = frozenset(
    {
        "RELAY_CHANNEL_LAYER",
        "RELAY_VAR_DIR",
        "RELAY_JWT_ALGORITHM",
        "RELAY_JWT_PUBLIC_KEY_FILE",
        "RELAY_JWT_AUDIENCE",
        "RELAY_JWT_ISSUER",
        "RELAY_JWT_LEEWAY_SECONDS",
        # The client's, which stay set in a terminal from which the server's commands are run, too.
        "RELAY_URL",
        "RELAY_TOKEN",
        "RELAY_VOUCHING_TOKEN",
    }
)
"""The `RELAY_` variables read here rather than by the app."""

SQLITE_OPTIONS: dict[str, Any] = {
    # Readers don't wait for the writer; FULL: a usage record that is committed survives a power cut.
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL",
    # A transaction that starts as a reader can't be upgraded while another writes: it fails at once.
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
}


REDIS_OPTIONS: dict[str, Any] = {
    # A network that swallows everything must not hold up what could go on over a new connection. Longer than
    # the five seconds for which the core layer's reads block.
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    # With the third protocol redis-py formats each message it receives for a debug line, shown or not: two
    # thirds of a node's CPU time at 256 KiB a message.
    "protocol": 2,
    # A subscriber only listens: without these it would never learn that the other end is gone.
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, option): value
        for option, value in {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}.items()
        if hasattr(socket, option)  # not everywhere
    },
}


class Environment(BaseModel):
    """What the platform project reads from the environment, checked and with its defaults."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, arbitrary_types_allowed=True)

    debug: bool = Field(False, alias="DEBUG")
    port: int = Field(8001, ge=0, le=65535, alias="PORT")
    allowed_hosts: list[str] = Field(["localhost", "127.0.0.1", "[::1]"], alias="ALLOWED_HOSTS")
    redis_url: str = Field("", alias="REDIS_URL")
    channel_layer: Literal["pubsub", "core"] = Field("pubsub", alias="RELAY_CHANNEL_LAYER")
    database: dict[str, Any] = Field({}, alias="DATABASE_URL")
    secret_key: str = Field("", alias="SECRET_KEY")
    var_dir: Path = Field(Path("var"), alias="RELAY_VAR_DIR")
    jwt_algorithm: Literal[
        "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512"
    ] = Field("HS256", alias="RELAY_JWT_ALGORITHM")
    jwt_public_key: str = Field("", alias="RELAY_JWT_PUBLIC_KEY_FILE")
    jwt_audience: str | None = Field(None, alias="RELAY_JWT_AUDIENCE")
    jwt_issuer: str | None = Field(None, alias="RELAY_JWT_ISSUER")
    jwt_leeway_seconds: float = Field(0, ge=0, le=300, alias="RELAY_JWT_LEEWAY_SECONDS")

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, given: str) -> list[str]:
        return [host.strip() for host in given.split(",") if host.strip()]

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, given: str) -> str:
        if not given.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("expected a URL like redis://host:6379/0")
        return given

    @field_validator("database", mode="before")
    @classmethod
    def _parse_database(cls, given: str) -> dict[str, Any]:
        try:
            # A connection ends with its request: each request has a thread of its own under ASGI, so that one
            # that is kept longer would be left open with the thread. The ledger keeps its own.
            parsed = dj_database_url.parse(given, conn_max_age=0)
        except ValueError as error:
            raise ValueError("expected a URL like postgres://user:password@host:5432/name") from error
        config: dict[str, Any] = dict(parsed)
        if config["ENGINE"] not in ("django.db.backends.postgresql", "django.db.backends.sqlite3"):
            raise ValueError("expected a postgres:// or sqlite:// URL")
        if config["ENGINE"].endswith("postgresql"):
            config.setdefault("OPTIONS", {}).setdefault("connect_timeout", 5)
        else:
            config["OPTIONS"] = SQLITE_OPTIONS | config.get("OPTIONS", {})
        return config

    @field_validator("jwt_public_key", mode="before")
    @classmethod
    def _read_public_key(cls, given: str) -> str:
        try:
            return Path(given).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"expected the path of a readable PEM file ({error})") from error


SECRETS = frozenset({"SECRET_KEY", "DATABASE_URL", "REDIS_URL"})
"""Variables whose value an error must not repeat: it may hold a password."""


def read(environ: Mapping[str, str], base_dir: Path) -> Environment:
    """The project's settings from `environ`; raises `SettingError` with one line for the first bad one.

    An empty variable counts as not set, which is how compose files pass on what nobody set. Makes the
    folder for runtime data and, without `SECRET_KEY`, a key of its own in it.
    """
    aliases = [str(field.alias) for field in Environment.model_fields.values()]
    try:
        env = Environment.model_validate({name: environ[name] for name in aliases if environ.get(name)})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        given = "a value that is not shown" if name in SECRETS else repr(environ[name])
        raise SettingError(f"{name}: got {given}; {expectation(first['msg'])}") from None
    if not env.jwt_algorithm.startswith("HS") and not env.jwt_public_key:
        raise SettingError(
            f"RELAY_JWT_PUBLIC_KEY_FILE: not set; expected the path of a PEM file with the public key, "
            f"as RELAY_JWT_ALGORITHM is {env.jwt_algorithm}"
        )
    var_dir = base_dir / env.var_dir
    try:
        var_dir.mkdir(parents=True, exist_ok=True)
        key = env.secret_key or _own_key(var_dir / "secret_key")
    except OSError as error:
        raise SettingError(f"RELAY_VAR_DIR: {error}; expected a folder that can be written to") from None
    return env.model_copy(
        update={"var_dir": var_dir, "secret_key": key, "database": env.database or _sqlite(var_dir)}
    )


def _own_key(path: Path) -> str:
    """The key in `path`, made first where there is none; whichever of several processes comes first wins."""
    if not path.exists():
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)  # atomic, and fails where another process was first
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text(encoding="ascii").strip()


def _sqlite(var_dir: Path) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(var_dir / "relay.sqlite3"),
        "OPTIONS": SQLITE_OPTIONS,
    }
