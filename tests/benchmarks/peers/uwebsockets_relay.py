"""A bare relay on uWebSockets (`socketify`): each message is sent to the peer inside its own callback.

uWebSockets can't stop reading a socket. What the peer has not taken is buffered, and past the limit the
connection is closed, so that no frame is lost silently.
"""

import sys
from typing import Any

from socketify import App, AppListenOptions

from .pairing import Pairing

MIB = 1024 * 1024
waiting: "Pairing[Leg]" = Pairing()


class Leg:
    """One socket: its path, and its peer once it has come. Frames before that are kept."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket: Any = None
        self.peer: Leg | None = None
        self.early: list[tuple[bytes | str, Any]] = []


def upgrade(res: Any, req: Any, context: Any) -> None:
    res.upgrade(
        req.get_header("sec-websocket-key"),
        req.get_header("sec-websocket-protocol"),
        req.get_header("sec-websocket-extensions"),
        context,
        Leg(req.get_url()),
    )


def opened(ws: Any) -> None:
    leg = ws.get_user_data()
    leg.socket = ws
    if peer := waiting.meet(leg.path, leg):
        leg.peer, peer.peer = peer, leg
        for message, opcode in peer.early:
            ws.send(message, opcode)
        peer.early.clear()


def received(ws: Any, message: bytes | str, opcode: Any) -> None:
    leg = ws.get_user_data()
    if leg.peer is not None:
        leg.peer.socket.send(message, opcode)
    else:
        leg.early.append((message, opcode))


def closed(ws: Any, code: int, message: bytes) -> None:
    leg = ws.get_user_data()
    waiting.leave(leg.path, leg)
    if leg.peer is not None:
        peer, leg.peer = leg.peer, None
        peer.peer = None
        peer.socket.end(1000, "")


def main(port: int) -> None:
    app = App()
    app.ws(
        "/relay/*",
        {
            "compression": 0,
            "max_payload_length": 64 * MIB,
            "max_backpressure": 256 * MIB,
            "close_on_backpressure_limit": True,
            "idle_timeout": 120,
            "upgrade": upgrade,
            "open": opened,
            "message": received,
            "close": closed,
        },
    )
    app.listen(AppListenOptions(port=port, host="127.0.0.1"))
    app.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
