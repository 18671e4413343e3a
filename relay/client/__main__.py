"""`python -m relay.client`: files and streams to the peer of a session, encrypted end to end."""

import asyncio
import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tqdm import tqdm

from relay.client.connection import Closed, RelayConnection
from relay.client.files import TransferBroken, TransferRefused, printable, receive_files, send_files
from relay.client.noise import NoiseError
from relay.client.peers import (
    Fingerprint,
    KeyFileError,
    KnownPeers,
    PeerRefused,
    PeerRule,
    SignedClaim,
    own_key,
    session_of,
)
from relay.client.pipes import pipe_through
from relay.client.probe import measure
from relay.client.streams import StreamError, Streams
from relay.client.wire import WireError, fingerprint

EXIT: Final = {4401: 4, 4403: 4, 4408: 5, 4409: 4, 4429: 4, 4499: 4, 3403: 6}
"""Exit codes by close code; any other close is 5."""

EXITS: Final = """\b
Exit codes:
  0  all went over
  1  a file or the peer's messages were not as they have to be
  2  wrong options
  4  the relay refuses: token, session, quota
  5  the relay can't be reached, the peer did not come, or the connection broke
  6  the peer, or its key, is refused by either side
"""

DROPPED: Final = frozenset({1006, 1012, 1013, 4410, 4411, 4413, 4415})
"""Close codes after which a file transfer is taken up again."""


@dataclass(frozen=True)
class Side:
    """What the options say: how to connect, and whom to accept."""

    url: str
    token: str
    key: X25519PrivateKey
    rule: PeerRule
    verify: bool
    retry: float

    def connection(self, session_id: str) -> RelayConnection:
        """A new connection to the session."""
        return RelayConnection(
            self.url, session_id, self.token, key=self.key, rule=self.rule,
            verify=_ask if self.verify else None, connect_seconds=self.retry,
        )  # fmt: skip

    def session(self, session_id: str | None) -> str:
        """The session given, or else the one that the token is for."""
        chosen = session_id or session_of(self.token)
        if not chosen:
            raise click.UsageError("the token opens any session: say which with --session")
        return chosen


def _ask(words: str) -> bool:
    """Ask on the terminal itself: stdin and stdout may carry data."""
    with open("/dev/tty", "r+") as terminal:  # noqa: PTH123
        print(f"Does the peer show the same words?  {words}  [y/N] ", end="", file=terminal, flush=True)
        return terminal.readline().strip().lower() in ("y", "yes")


def _say(text: str) -> None:
    """What the person at the other end says, above the bar where there is one."""
    tqdm.write(f"peer: {printable(text, 10_000)}", file=sys.stderr)


HOME: Final = Path("~/.config/lem-relay").expanduser()


@click.group(epilog=EXITS)
@click.option("--url", envvar="RELAY_URL", default="ws://127.0.0.1:8001", show_default=True, help="the relay")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="a file with the token; otherwise it comes from RELAY_TOKEN, as other users can read command lines",
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    default=HOME / "key.pem",
    help="this side's key, made when it isn't there (default: ~/.config/lem-relay/key.pem)",
)
@click.option("--peer-key", metavar="SHA256:...", help="accept only the peer with this key")
@click.option(
    "--signer",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="accept only a peer whose token vouches for its key, signed for the public key in this PEM file",
)
@click.option(
    "--known-peers",
    type=click.Path(path_type=Path),
    default=HOME / "known_peers",
    help="without those two: keys of peers seen before, whose names nobody else may use "
    "(default: ~/.config/lem-relay/known_peers)",
)
@click.option(
    "--peer", default="", metavar="NAME", help="the peer's name in that file (default: the session)"
)
@click.option("--verify", is_flag=True, help="show words that both sides compare before anything passes")
@click.option(
    "--retry",
    type=click.FloatRange(0),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="how long to try again while the relay can't be reached or restarts",
)
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Files and streams to the peer of a session, encrypted from end to end: the relay can't read them."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    context.obj = {**options, "own_legs": False}


def _side(context: click.Context) -> Side:
    options = context.obj
    if options["token_file"]:
        token = options["token_file"].read_text(encoding="utf-8").strip()
    else:
        token = os.environ.get("RELAY_TOKEN", "").strip()
    if not token:
        raise click.UsageError("there is no token: set RELAY_TOKEN, or give --token-file")
    rule: PeerRule
    key = own_key(options["key_file"])
    try:
        if options["own_legs"]:
            rule = Fingerprint(fingerprint(key.public_key().public_bytes_raw()))
        elif options["peer_key"]:
            rule = Fingerprint(options["peer_key"])
        elif options["signer"]:
            rule = SignedClaim(options["signer"].read_bytes())
        else:
            rule = KnownPeers(options["known_peers"], options["peer"])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return Side(options["url"], token, key, rule, options["verify"], options["retry"])


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, or exit with one clear line and the code that tells what it was."""
    try:
        asyncio.run(work())
    except Closed as error:
        _fail(EXIT.get(error.code, 5), error)
    except PeerRefused as error:
        _fail(6, error)
    except (NoiseError, StreamError, WireError) as error:
        _fail(1, f"{error}: the peer speaks something else, or someone is in between")
    except TimeoutError:
        _fail(5, "the peer did not answer in time")
    except (TransferRefused, TransferBroken, KeyFileError, OSError, ValueError) as error:
        _fail(1, error)


def _fail(code: int, error: object) -> None:
    click.echo(f"lem-relay: {printable(error)}", err=True)
    sys.exit(code)


@main.group()
def key() -> None:
    """This side's key."""


@key.command()
@click.pass_context
def show(context: click.Context) -> None:
    """Print the fingerprint, which the peer gives as --peer-key."""
    try:
        own = own_key(context.obj["key_file"])
    except KeyFileError as error:
        _fail(1, error)
    click.echo(fingerprint(own.public_key().public_bytes_raw()))


@main.command()
@click.argument("session")
@click.pass_context
def pipe(context: click.Context, session: str) -> None:
    """Stdin to the peer, and what the peer sends to stdout; good as ssh's ProxyCommand."""

    async def work() -> None:
        async with side.connection(session) as peer:
            await pipe_through(peer, sys.stdin.fileno(), sys.stdout.fileno())

    side = _side(context)
    _run(work)


@main.command()
@click.option("--session", help="default: the one that the token is for")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.pass_context
def send(context: click.Context, session: str | None, files: tuple[Path, ...]) -> None:
    """Send files to the peer, which runs `receive`."""
    side = _side(context)
    session_id = side.session(session)

    async def work() -> None:
        async with side.connection(session_id) as peer:
            with Bar() as bar:
                await send_files(peer, list(files), bar.show, _say)

    _run(lambda: _again(work, side.retry))


@main.command()
@click.option("--session", help="default: the one that the token is for")
@click.option("--into", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(),
              help="folder for the files (default: this one)")  # fmt: skip
@click.pass_context
def receive(context: click.Context, session: str | None, into: Path) -> None:
    """Take the files that the peer sends; print where they are."""
    side = _side(context)
    session_id = side.session(session)

    async def work() -> None:
        async with side.connection(session_id) as peer:
            with Bar() as bar:
                taken = await receive_files(peer, into, bar.show, _say)
        for path in taken:
            click.echo(path)

    _run(lambda: _again(work, side.retry))


class Forward(click.ParamType[tuple[str, int, str]]):
    """`[BIND:]PORT:HOST:PORT`, as ssh has it."""

    name = "[bind:]port:host:port"
    pattern = re.compile(
        r"(?:(?P<bind>\[[^]]+\]|[^:]+):)?(?P<port>\d{1,5}):(?P<target>(?:\[[^]]+\]|[^:]+):\d{1,5})"
    )

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, int, str]:
        """Where to listen, and the target at the peer's."""
        found = self.pattern.fullmatch(value)
        if not found:
            self.fail("this is not [BIND:]PORT:HOST:PORT", param, context)
        return (found["bind"] or "127.0.0.1").strip("[]"), int(found["port"]), found["target"]


@main.command()
@click.option("-L", "forwards", multiple=True, required=True, type=Forward(),
              help="listen on PORT (of 127.0.0.1) and carry to HOST:PORT at the peer's")  # fmt: skip
@click.argument("session")
@click.pass_context
def forward(context: click.Context, forwards: tuple[tuple[str, int, str], ...], session: str) -> None:
    """TCP connections to this machine go to the peer's, which runs `serve`."""
    side = _side(context)

    async def work() -> None:
        async with side.connection(session) as peer, contextlib.AsyncExitStack() as listening:
            streams = Streams(peer)
            for bind, port, target in forwards:
                carry = functools.partial(streams.forward, target)
                await listening.enter_async_context(await asyncio.start_server(carry, bind, port))
                click.echo(f"{bind}:{port} leads to {target}", err=True)
            await streams.run()

    _run(lambda: _again(work, side.retry))


@main.command()
@click.option(
    "--allow", multiple=True, required=True, metavar="HOST:PORT", help="a target that the peer may reach"
)
@click.argument("session")
@click.pass_context
def serve(context: click.Context, allow: tuple[str, ...], session: str) -> None:
    """Let the peer, which runs `forward`, connect to the targets allowed here, and nowhere else."""
    for target in allow:
        if not re.fullmatch(r"(\[[^]]+\]|[^:]+):\d{1,5}", target):
            raise click.BadParameter(f"{target} is not HOST:PORT", param_hint="--allow")
    side = _side(context)

    async def work() -> None:
        async with side.connection(session) as peer:
            await Streams(peer, allow).run()

    _run(lambda: _again(work, side.retry))


@main.command()
@click.option(
    "--megabytes", type=click.IntRange(1, 10_000), default=20, show_default=True, help="to carry across"
)
@click.option("--session", help="default: the one that the token is for")
@click.argument("url")
@click.pass_context
def probe(context: click.Context, url: str, session: str | None, megabytes: int) -> None:
    """Connect both legs to the relay at URL; print round trip and throughput, or what refused it.

    The token is used twice, so it must not name a role.
    """
    context.obj["url"] = url
    context.obj["own_legs"] = True
    side = _side(context)
    session_id = side.session(session)

    async def work() -> None:
        trip, rate = await measure(
            side.connection(session_id), side.connection(session_id), megabytes * 10**6
        )
        click.echo(f"round trip {trip * 1000:.1f} ms")
        click.echo(f"throughput {rate / 1e6:.1f} MB/s, encrypted and decrypted by this one process")

    _run(work)


async def _again(work: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> None:
    """`work` again where the session dropped under it: what is there already does not go over twice."""
    loop = asyncio.get_running_loop()
    dropped = None
    while True:
        try:
            return await work()
        except Closed as error:
            # Our own half-dead leg may hold its place for a while.
            held = error.code == 4409 and dropped is not None and loop.time() - dropped < seconds
            if not seconds or not (error.code in DROPPED or held):
                raise
            dropped = dropped if held else loop.time()
            logging.getLogger(__name__).warning("%s; going on from there", error)
            await asyncio.sleep(0.5)


class Bar:
    """Progress on stderr, where that is a terminal: rate and time left."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._name = ""

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def show(self, name: str, done: int, size: int) -> None:
        """The state of a file, in bytes."""
        if name != self._name or self._bar is None:
            self._close()
            self._name = name
            # `disable=None` is off where stderr is no terminal.
            self._bar = tqdm(
                total=size, initial=done, desc=name, unit="B", unit_scale=True, file=sys.stderr, disable=None
            )
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


if __name__ == "__main__":
    main(prog_name="python -m relay.client")
