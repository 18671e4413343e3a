"""HTTP of the server: bad requests get an answer instead of a traceback, and upgrades become WebSockets."""

from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import daphne.http_protocol
from daphne.utils import HEADER_NAME_RE, INVALID_HEADER_VALUE_BYTES, parse_x_forwarded_for
from twisted.protocols.policies import ProtocolWrapper
from twisted.web import http

ROOT_PATH_HEADER = b"daphne-root-path"

UPGRADE_HEADERS = frozenset({b"host", b"upgrade", b"connection", b"origin"})
"""Headers that autobahn needs for the handshake, beside all of `sec-websocket-*`."""

MAX_BODY_BYTES = 2_621_440
"""Largest body of a request, in bytes; Daphne hands it to the application's queue in whole. 2.5 MiB: what
Django takes into memory by default, and far more than a form of the admin."""


class Request(daphne.http_protocol.WebRequest):  # type: ignore[misc] # Daphne has no types
    """One HTTP request; Daphne's own, but for what makes it fail, and for the upgrade."""

    transport: Any
    channel: Any

    _refused = False

    def gotLength(self, length: int | None) -> None:
        """The headers are here, and with them the size of the body unless it comes in chunks."""
        super().gotLength(length)
        if length is not None and length > MAX_BODY_BYTES:
            self._refuse_body()

    def handleContentChunk(self, data: bytes) -> None:
        """A part of the body."""
        if not self._refused:
            super().handleContentChunk(data)
            if self.content.tell() > MAX_BODY_BYTES:
                self._refuse_body()

    def _refuse_body(self) -> None:
        self._refused = True
        self.channel.refuse(413)

    def process(self) -> Any:
        """All of the request is here."""
        if self._refused:
            return None
        self.query_string = self.uri.partition(b"?")[2]
        headers = list(self.requestHeaders.getAllRawHeaders())
        if not self.path.isascii() or not self.query_string.isascii():
            return self.basic_error(400, b"Bad Request", "The path is not ASCII")
        for name, values in headers:
            odd = any(map(INVALID_HEADER_VALUE_BYTES.intersection, values))
            if odd or not HEADER_NAME_RE.fullmatch(name):
                return self.basic_error(400, b"Bad Request", "Invalid header")
            needed = name.lower() in (*UPGRADE_HEADERS, ROOT_PATH_HEADER) or name.lower().startswith(b"sec-")
            if needed and not all(map(bytes.isascii, values)):
                return self.basic_error(400, b"Bad Request", "Invalid header value")
        upgrade = self.requestHeaders.getRawHeaders(b"Upgrade", [b""])[0]
        if upgrade.lower() == b"websocket":
            return self._upgrade(headers)
        return super().process()

    def _upgrade(self, headers: list[tuple[bytes, list[bytes]]]) -> None:
        """Hand the connection over to a `WebSocket`."""
        scope = self._websocket_scope(headers)
        socket = self.server.ws_factory.buildProtocol(self.transport.getPeer())
        socket.scope = scope
        channel, transport = self.channel, self.transport
        self.transport = None
        # Else the channel would pause *reading* when there's no room to write, and never tell the socket.
        transport.unregisterProducer()
        if isinstance(transport, ProtocolWrapper):  # TLS
            transport.wrappedProtocol = socket
        else:
            transport.protocol = socket
        socket.makeConnection(transport)
        lines = [b" ".join((self.method, self.uri, b"HTTP/1.1"))]
        for name, values in headers:
            if name.lower() in UPGRADE_HEADERS or name.lower().startswith(b"sec-websocket-"):
                lines.append(name + b": " + b",".join(values))
        socket.dataReceived(b"\r\n".join([*lines, b"", b""]))
        # What the client sent after its request is still in the channel: frames, if anything.
        channel.rawDataReceived = socket.dataReceived
        transport.resumeProducing()
        self.server.protocol_disconnected(self)
        # The two refer to each other: freed now rather than by the garbage collector.
        channel.requests.clear()
        self.channel = None

    def _websocket_scope(self, headers: list[tuple[bytes, list[bytes]]]) -> dict[str, Any]:
        root_path, kept = self.server.root_path, []
        for name, values in headers:
            if name.lower() == ROOT_PATH_HEADER:
                root_path = unquote(values[0].decode("ascii"))
            elif b"_" not in name:  # CVE-2015-0219
                kept += [(name.lower(), value) for value in values]
        client = server = None
        if hasattr(self.client, "port"):
            client, server = [self.client.host, self.client.port], [self.host.host, self.host.port]
        scheme = "wss" if self.isSecure() else "ws"
        if self.server.proxy_forwarded_address_header:
            client, forwarded = parse_x_forwarded_for(
                self.requestHeaders,
                self.server.proxy_forwarded_address_header,
                self.server.proxy_forwarded_port_header,
                self.server.proxy_forwarded_proto_header,
                client,
                scheme,
            )
            scheme = {"https": "wss", "http": "ws"}.get(forwarded, scheme)
        return {
            "type": "websocket",
            "http_version": "1.1",
            "scheme": scheme,
            "path": unquote(self.path.decode("ascii")),
            "raw_path": self.path,
            "query_string": self.query_string,
            "root_path": root_path,
            "headers": kept,
            "client": client,
            "server": server,
        }

    def connectionLost(self, reason: Any) -> None:
        self.method = getattr(self, "method", b"")
        super().connectionLost(reason)

    def finished_early(self, error: BaseException | None) -> None:
        """The application has ended, with `error` if it failed; an unfinished response ends now."""
        if self.finished or self.channel is None:
            return
        if not self._response_started:
            self.basic_error(500, b"Internal Server Error", "Exception inside application.")
        else:
            self.channel.loseConnection()  # so that the client doesn't take it for complete


def checked_headers(headers: Any) -> list[tuple[str, str]]:
    """Names in lower case and values, as text. Raises `ValueError` for what would break the response."""
    checked = []
    for name, value in headers:
        text = name.decode("ascii").lower(), value.decode("ascii")
        if not text[0] or not all(part.isprintable() for part in text):
            raise ValueError("a response header has a control character or no name")
        checked.append(text)
    return checked


def final_response(status: int, headers: list[tuple[str, str]], body: bytes = b"") -> bytes:
    """A whole HTTP response after which the connection closes."""
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    lines = [f"HTTP/1.1 {status} {phrase}", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers if name not in ("connection", "content-length")]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


class Channel(http.HTTPChannel):  # type: ignore[misc] # Twisted isn't followed
    """One HTTP connection. Says which limit a request broke before it closes."""

    requestFactory = Request

    def lineLengthExceeded(self, line: bytes) -> None:
        """A request line or header over 16 KiB, Twisted's limit."""
        in_headers = bool(self.requests) and hasattr(self, "_command")
        self.refuse(431 if in_headers else 414)

    def refuse(self, status: int) -> None:
        """Answer with an error, and close."""
        self.transport.write(final_response(status, []))
        self.loseConnection()


class Factory(daphne.http_protocol.HTTPFactory):  # type: ignore[misc]
    """Makes `Channel`s. HTTP/1.1 only: WebSockets need it, and nothing else here is large."""

    protocol = Channel

    def buildProtocol(self, addr: Any) -> Channel:
        """A `Channel`; not through Daphne's, which would set its own request factory."""
        channel: Channel = http.HTTPFactory.buildProtocol(self, addr)
        return channel

    def log(self, request: Any) -> None:
        """Not Twisted's access log, which shows queries: there may be tokens in them."""

    def acceptableProtocols(self) -> list[bytes]:
        """For ALPN."""
        return [b"http/1.1"]
