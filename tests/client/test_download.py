"""A large download through `forward` and `serve`, beside one whose reader does not read: each in processes of
its own, as people run them, whose memory has to stay where it is."""

import hashlib
import http.client
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from tests.client.test_command_line import Person, finish
from tests.relays import Relay, free_port

MIB = 1024 * 1024
SIZE = 200 * MIB
BLOCK = os.urandom(MIB)

GROWTH = 8 * MIB
"""Most that either client may grow. Beside 200 MiB that pass, it may hold per stream a window of 256 KiB each
way and what asyncio reads ahead and keeps unwritten (some 64 KiB each), and for the WebSocket 16 messages of
64 KiB and a write buffer: below 3 MiB in all, and the rest is for the allocator."""


def blocks() -> Iterator[bytes]:
    """The content, no two blocks of which are the same."""
    return (number.to_bytes(8) + BLOCK[8:] for number in range(SIZE // MIB))


class Site(BaseHTTPRequestHandler):
    """Sends the content; counts under the path what went out."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        try:
            for block in blocks():
                self.wfile.write(block)
                self.server.sent[self.path] = self.server.sent.get(self.path, 0) + len(block)
        except ConnectionError:  # the one that nobody reads, at the end
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.sent = {}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_goes_on_beside_one_that_is_not_read_in_bounded_memory(
    daphne: Relay, site: ThreadingHTTPServer, session_id: str, tmp_path: Path
) -> None:
    here, there = (Person(tmp_path / who, daphne.url) for who in ("here", "there"))
    target, port = f"127.0.0.1:{site.server_port}", free_port()
    clients = [
        there.start("serve", "--allow", target, session_id),
        here.start("forward", "-L", f"{port}:{target}", session_id),
    ]
    stalled, moving = (http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(2))

    def download() -> bytes:
        moving.request("GET", "/moving")
        answer = moving.getresponse()
        digest = hashlib.sha256()
        while piece := answer.read(MIB):
            digest.update(piece)
        return digest.digest()

    try:
        assert clients[1].stderr
        assert clients[1].stderr.readline().decode() == f"127.0.0.1:{port} leads to {target}\n"
        stalled.request("GET", "/stalled")
        stalled.getresponse()  # its head, and no more
        processes = [psutil.Process(client.pid) for client in clients]
        before = [process.memory_info().rss for process in processes]
        most = before
        with ThreadPoolExecutor() as threads:
            downloading = threads.submit(download)
            while not downloading.done():
                most = [max(m, p.memory_info().rss) for m, p in zip(most, processes, strict=True)]
                time.sleep(0.02)
        expected = hashlib.sha256()
        for block in blocks():
            expected.update(block)
        assert downloading.result() == expected.digest()
        assert site.sent["/stalled"] < SIZE // 4, "the kernel's buffers, and not the clients, hold some of it"
        grown = [m - b for m, b in zip(most, before, strict=True)]
        assert max(grown) < GROWTH, grown
    finally:
        for connection in (stalled, moving):
            connection.close()
        for client in clients:
            client.kill()
            finish(client)
