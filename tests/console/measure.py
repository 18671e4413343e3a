"""Times a file between a page of the console and Python, beside what bare WebSockets carry between the two.

`python -m tests.console.measure [MEGABYTES]`: prints MB/s; of files from the offer to the SHA-256 being right
at the other end. What the page sends includes computing it here first.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright
from websockets.sync.client import connect

from tests.admin.test_browser import ARGUMENTS, CHROMIUM
from tests.client.test_command_line import Person, finish
from tests.console.ends import beside, visiting
from tests.relays import Relay, running
from tests.tokens import token

MESSAGE = 65_535

OPEN = """
    const socket = new WebSocket(url, ["lem.relay.v1", "bearer." + token]);
    socket.binaryType = "arraybuffer";
    await new Promise((resolve) => { socket.onopen = resolve; });
"""
TAKE = f"""async ([url, token, total]) => {{ {OPEN}
    let [begun, got] = [0, 0];
    await new Promise((resolve) => {{ socket.onmessage = ({{ data }}) => {{
        begun ||= performance.now();
        got += data.byteLength;
        if (got >= total) resolve();
    }}; }});
    socket.close();
    return total / 1000 / (performance.now() - begun);
}}"""
SEND = f"""async ([url, token, total]) => {{ {OPEN}
    const [begun, message] = [performance.now(), new Uint8Array({MESSAGE})];
    const done = new Promise((resolve) => {{ socket.onmessage = resolve; }});
    for (let at = 0; at < total; at += message.length) {{
        while (socket.bufferedAmount > 2 ** 20) await new Promise((resolve) => setTimeout(resolve, 1));
        socket.send(message);
    }}
    await done;
    socket.close();
    return total / 1000 / (performance.now() - begun);
}}"""
WATCH = """() => {
    const times = window.times = {};
    new MutationObserver(() => {
        times.begun ??= performance.now();
        if (document.getElementById("transfers").textContent.includes("SHA-256 is right")) {
            times.done ??= performance.now();
        }
    }).observe(document.getElementById("transfers"), { subtree: true, childList: true, characterData: true });
}"""


def bare(chromium: Browser, relay: Relay, total: int, *, to_page: bool) -> float:
    """MB/s of messages that nobody encrypts."""
    url = f"{relay.url}/relay/bare-{to_page}"
    total -= total % MESSAGE

    async def other() -> None:
        headers = {"Authorization": f"Bearer {token(sub='bare')}"}
        with connect(url, additional_headers=headers, compression=None, max_size=None) as socket:
            for _ in range(total // MESSAGE):
                if to_page:
                    socket.send(bytes(MESSAGE))
                else:
                    socket.recv()
            socket.send("done")

    with visiting(chromium, relay) as visit:
        visit.go()
        beside(other)
        return float(visit.page.evaluate(TAKE if to_page else SEND, [url, token(), total]))


def file(chromium: Browser, relay: Relay, folder: Path, total: int, *, to_page: bool) -> float:
    """MB/s of a file."""
    name = "to-page" if to_page else "from-page"
    person = Person(folder / name, relay.url, session_id=name)
    source = (person.home if to_page else folder) / f"{name}.bin"
    source.write_bytes(os.urandom(total))
    with visiting(chromium, relay) as visit:
        visit.go().join(name)
        visit.page.evaluate(WATCH)
        arguments: list[Any] = ["--peer-key", visit.key, *(["send", source] if to_page else ["receive"])]
        python = person.start(*arguments)
        if not to_page:
            visit.shows("Connected")
            visit.page.locator("#chosen").set_input_files(source)
        visit.has(source.name, "SHA-256 is right")
        took = visit.page.evaluate("(times.done - times.begun) / 1000")
        if not to_page:
            visit.leave()
        assert finish(python).returncode == 0
    return float(total / 1e6 / took)


def main(megabytes: int) -> None:
    total = megabytes * 1_000_000
    with (
        tempfile.TemporaryDirectory() as folder,
        running("daphne spliced", Path(folder) / "relay") as relay,
        sync_playwright() as playwright,
    ):
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for to_page in (True, False):
            way = "Python to page" if to_page else "page to Python"
            print(f"{way}: {bare(chromium, relay, total, to_page=to_page):6.1f} MB/s bare WebSocket")
            print(f"{way}: {file(chromium, relay, Path(folder), total, to_page=to_page):6.1f} MB/s as a file")
        chromium.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
