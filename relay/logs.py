"""No token reaches a log: a filter on the loggers through which servers tell of requests.

It's put on the loggers themselves: what configures logging later, be it the server or the project, replaces
their handlers and leaves their filters.
"""

import contextlib
import copy
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

SERVER_LOGGERS = (
    "uvicorn.access",  # each HTTP request with its query
    "uvicorn.error",  # each upgrade with its query; at the level debug all headers, too
    "hypercorn.access",  # what the project's format names: the query, any header
    "hypercorn.error",
    "granian.access",  # likewise
    "_granian",
    "_granian.asgi.http",  # errors of applications; a parent's filter does not see what its children log
    "_granian.asgi.io",
    "_granian.asgi.utils",
    "_granian.utils",
    "gunicorn.access",  # likewise, in front of uvicorn's workers
    "gunicorn.error",
    "daphne.server",
    "daphne.http_protocol",  # tracebacks of requests that it can't read
    "daphne.ws_protocol",
    "django.channels.server",  # runserver's, of Daphne: each request with its query
    "django.server",  # runserver's, without Daphne: likewise
    "django.request",  # paths; with some formatters all of the request
    "websockets.server",  # headers, at the level debug
)
"""Those of the servers that we know that log requests or errors of them."""

CUT = "..."
"""What stands in a log where a secret stood."""

SECRETS = (
    # A query, of whatever: a token may be anywhere in it. Not the question mark of a sentence.
    (re.compile(r"\?[^\s\"'<>]+"), ""),
    # One that a format has without its question mark.
    (re.compile(r"\b(\w*token=)[^\s&\"'<>]+", re.IGNORECASE), rf"\1{CUT}"),
    (re.compile(r"\b(bearer[ .])[^\s,;\"'<>]+", re.IGNORECASE), rf"\1{CUT}"),
    # Whatever its scheme.
    (re.compile(r"\b(authorization\b[\"']?[:,=]\s*b?[\"']?)[^\r\n\"']+", re.IGNORECASE), rf"\1{CUT}"),
    # A JSON Web Token by itself (RFC 7519): its header is JSON, which begins like this in base64.
    (re.compile(r"\beyJ[\w-]+(?:\.[\w-]*)*"), CUT),
)


def without_secrets(text: str) -> str:
    """`text` without queries and without what may be a token."""
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


class WithoutSecrets(logging.Filter):
    """Cuts queries and tokens out of what is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; the record is changed in place. Servers' formatters find the arguments they expect."""
        args: Any = record.args
        if isinstance(args, tuple):
            record.args = tuple(_cut(argument) for argument in args)
        elif isinstance(args, Mapping) and args:
            # A copy of its own kind: hypercorn's knows what to say where nothing is.
            mine: Any = copy.copy(args)
            for name, value in args.items():
                mine[name] = _cut(value)
            record.args = mine
        # What looks harmless in pieces, and any other object's text. What can't be formatted is the handler's
        # to report: no request may fail by it.
        with contextlib.suppress(TypeError, ValueError, KeyError):
            message = record.getMessage()
            if (cut := without_secrets(message)) != message:
                record.msg, record.args = cut, None
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            # Formatters take the text of a traceback from here if there is one.
            record.exc_text = without_secrets(logging.Formatter().formatException(record.exc_info))
        return True


def _cut(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value


_filter = WithoutSecrets()


def install() -> None:
    """Put the filter on `SERVER_LOGGERS`, and into the access log of plain Daphne, which has no logger."""
    for name in SERVER_LOGGERS:
        logging.getLogger(name).addFilter(_filter)
    _install_in_daphne()


def _install_in_daphne() -> None:
    """The `daphne` command has imported its access log before it imports the project."""
    access = sys.modules.get("daphne.access")
    if access is None or getattr(access.AccessLogGenerator, "without_secrets", False):
        return
    write_entry = access.AccessLogGenerator.write_entry

    def write_entry_without_secrets(self: Any, host: Any, date: Any, request: str, **more: Any) -> None:
        write_entry(self, host, date, without_secrets(request), **more)

    access.AccessLogGenerator.write_entry = write_entry_without_secrets
    access.AccessLogGenerator.without_secrets = True


def unguarded() -> list[str]:
    """Names of those of `SERVER_LOGGERS` that would let a token through, as logging is configured now."""
    return [name for name in SERVER_LOGGERS if _lets_through(logging.getLogger(name))]


def _lets_through(logger: logging.Logger) -> bool:
    token = "eyJhbGciOiJIUzI1NiJ9.probe.probe"  # noqa: S105 - nobody's
    record = logger.makeRecord(
        logger.name, logging.INFO, __file__, 0, "GET %s", (f"/relay/x?token={token}",), None
    )
    return bool(logger.filter(record)) and token in record.getMessage()
