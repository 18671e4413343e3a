"""A bare relay on picows and uvloop: each frame goes to the peer's transport inside its own callback.

Back-pressure: when the peer's transport asks to pause, reading from this leg stops until it resumes.
"""

import asyncio
import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from .pairing import Pairing

MAX_FRAME_BYTES = 64 * 1024 * 1024
waiting: "Pairing[Leg]" = Pairing()


class Leg(WSListener):
    """One socket. A frame that comes before the peer is kept, and reading stops until the peer is there."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.peer: Leg | None = None
        self.early: list[tuple[WSMsgType, bytes, bool]] = []

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        if peer := waiting.meet(self.path, self):
            self.peer, peer.peer = peer, self
            for frame in peer.early:
                transport.send(*frame)
            if peer.early:
                peer.early.clear()
                peer.transport.underlying_transport.resume_reading()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.msg_type == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif self.peer is not None:
            if frame.msg_type != WSMsgType.PONG:
                self.peer.transport.send(frame.msg_type, frame.get_payload_as_memoryview(), frame.fin)
        else:
            self.early.append((frame.msg_type, frame.get_payload_as_bytes(), frame.fin))
            transport.underlying_transport.pause_reading()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        waiting.leave(self.path, self)
        if self.peer is not None:
            self.peer.transport.disconnect()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.underlying_transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.underlying_transport.resume_reading()


async def main(port: int) -> None:
    def accept(request: WSUpgradeRequest) -> Leg:
        return Leg(request.path.decode())

    server = await ws_create_server(
        accept, "127.0.0.1", port, max_frame_size=MAX_FRAME_BYTES, enable_auto_pong=False
    )
    async with server:
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
