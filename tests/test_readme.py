"""The README's commands do what it says: the very lines that stand there are run here."""

import asyncio
import hashlib
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.relays import ROOT, Relay

BIN = Path(sys.executable).parent
NODE_BIN = ROOT / "var" / "node" / "node_modules" / ".bin"

SEEN_SECONDS = 20.0
"""Deadline for what has to appear on a terminal."""


def commands(word: str) -> list[str]:
    """The lines of the README's shell blocks that start with `word`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(word)]


def on(relay: Relay, command: str, session_id: str) -> str:
    """`command` with the address of this test's relay and a session of its own."""
    assert "127.0.0.1:8001/relay/" in command
    moved = command.replace("127.0.0.1:8001", f"{relay.host}:{relay.port}")
    return re.sub(r"/relay/\w+", f"/relay/{session_id}", moved)


def environ(**more: str) -> dict[str, str]:
    """This process's environment with the clients on the path."""
    path = os.pathsep.join((str(BIN), str(NODE_BIN), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "TERM": "dumb", **more}


class Terminal:
    """A command on a terminal of its own, as a person runs it: some clients behave otherwise on a pipe."""

    def __init__(self, command: str, **more: str) -> None:
        self._keyboard, screen = pty.openpty()
        os.set_blocking(self._keyboard, False)
        self.process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"], stdin=screen, stdout=screen, stderr=screen, env=environ(**more)
        )
        os.close(screen)
        self._shown = b""

    def type(self, line: str) -> None:
        """Type a line and press return."""
        os.write(self._keyboard, f"{line}\n".encode())

    async def shows(self, text: str) -> None:
        """Wait until `text` has appeared."""
        loop, deadline = asyncio.get_running_loop(), time.monotonic() + SEEN_SECONDS
        while text.encode() not in self._shown:
            readable = asyncio.Event()
            loop.add_reader(self._keyboard, readable.set)
            try:
                await asyncio.wait_for(readable.wait(), deadline - time.monotonic())
                self._shown += os.read(self._keyboard, 65536)
            except (TimeoutError, OSError) as error:
                raise AssertionError(f"{text!r} never appeared in {self._shown!r}") from error
            finally:
                loop.remove_reader(self._keyboard)

    def close(self) -> None:
        """End the command and the terminal."""
        self.process.terminate()
        self.process.wait(SEEN_SECONDS)
        os.close(self._keyboard)


def issued(relay: Relay, session_id: str) -> str:
    """What the README's `issue_token` line prints."""
    (line,) = commands("export TOKEN=")
    python, script, *arguments = shlex.split(re.search(r"\$\((.*)\)", line)[1])
    assert (python, script) == (".venv/bin/python", "manage.py")
    return relay.manage(*(session_id if word == "demo" else word for word in arguments)).stdout.strip()


async def talk(relay: Relay, session_id: str, *pair: str) -> None:
    token = issued(relay, session_id)
    one, two = [Terminal(on(relay, command, session_id), TOKEN=token) for command in pair]
    try:
        for terminal, command in zip((one, two), pair, strict=True):
            if command.startswith("wscat"):
                await terminal.shows("Connected")  # it forgets what is typed earlier
        one.type("hello from one")
        await two.shows("hello from one")
        two.type("hello from two")
        await one.shows("hello from two")
    finally:
        one.close()
        two.close()
    line = await relay.session_closed(session_id)
    assert (line["frames_client_to_server"], line["frames_server_to_client"]) == (1, 1)


async def test_two_terminals_with_websocat(relay, session_id):
    websocat = next(line for line in commands("websocat") if "TOKEN" in line and "FILE" not in line)
    await talk(relay, session_id, websocat, websocat)


@pytest.mark.system
async def test_two_terminals_with_wscat(relay, session_id):
    (wscat,) = commands("wscat")
    await talk(relay, session_id, wscat, wscat)


@pytest.mark.system
async def test_wscat_meets_websocat(relay, session_id):
    websocat = next(line for line in commands("websocat") if "FILE" not in line)
    await talk(relay, session_id, commands("wscat")[0], websocat)


async def test_a_file_crosses_with_websocat(relay, session_id, tmp_path):
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.write_bytes(os.urandom(3_000_000))
    token = issued(relay, session_id)
    receive, send = [
        on(relay, line, session_id).replace("> copy", f"> {copy}").replace("< original", f"< {original}")
        for line in commands("websocat")
        if "FILE_TOKEN" in line
    ]
    receiver, sender = [
        subprocess.Popen(["sh", "-c", command], env=environ(FILE_TOKEN=token)) for command in (receive, send)
    ]
    try:
        for process in (sender, receiver):
            assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        for process in (sender, receiver):
            process.kill()
            process.wait()
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(original.read_bytes()).digest()


async def test_a_file_crosses_encrypted_on_the_first_screen(relay, tmp_path):
    (line,) = commands("export RELAY_TOKEN=")
    _, _, *arguments = shlex.split(re.search(r"\$\((.*)\)", line)[1])
    folder = tmp_path / "received"
    folder.mkdir()
    receive, send = commands(".venv/bin/python -m relay.client")
    pair = [
        subprocess.Popen(
            [
                "sh",
                "-c",
                re.sub(
                    r"--into \S+", f"--into {folder}", command.replace(".venv/bin/python", sys.executable)
                ),
            ],
            cwd=ROOT,
            env=environ(
                HOME=str(tmp_path), RELAY_URL=relay.url, RELAY_TOKEN=relay.manage(*arguments).stdout.strip()
            ),
        )
        for command in (receive, send)
    ]
    try:
        for process in pair:
            assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        for process in pair:
            process.kill()
            process.wait()
    assert (folder / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()


async def test_two_programs_that_use_the_library_meet(relay, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert "ws://127.0.0.1:8001" in program
    pair = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        pair.append(
            subprocess.Popen(
                [sys.executable, "-c", program.replace("ws://127.0.0.1:8001", relay.url)],
                cwd=folder,
                stdout=subprocess.PIPE,
                env=environ(PYTHONPATH=str(ROOT), RELAY_TOKEN=issued(relay, "hello")),
            )
        )
    try:
        for process in pair:
            out, _ = await asyncio.to_thread(process.communicate, timeout=60)
            assert (process.returncode, out) == (0, b"any number of bytes\n")
    finally:
        for process in pair:
            process.kill()
            process.wait()
