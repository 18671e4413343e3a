"""The access log: one JSON object a line, without query strings, which may hold tokens."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger("relay.access")

EVENTS = {
    ("http", "complete"): "http_request",
    ("websocket", "connected"): "websocket_connect",
    ("websocket", "disconnected"): "websocket_disconnect",
    ("websocket", "rejected"): "websocket_reject",
}
"""What Daphne calls an action, and what the log calls it; other actions aren't logged."""


def log(protocol: str, action: str, details: dict[str, Any]) -> None:
    """Write the line of one action, with what Daphne tells of it; durations are in seconds."""
    event = EVENTS.get((protocol, action))
    if event is None or not logger.isEnabledFor(logging.INFO):
        return
    line: dict[str, Any] = {
        "event": event,
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "path": details["path"].partition("?")[0],
    }
    for name in ("client", "method", "status", "size", "code"):
        if name in details:
            line[name] = details[name]
    seconds = details.get("seconds", details.get("time_taken"))
    if seconds is not None:
        line["seconds"] = round(seconds, 6)
    logger.info(json.dumps(line))
