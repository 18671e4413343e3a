"""`python -m relay.client`: files and streams to the peer of a session, encrypted end to end."""

import asyncio
import contextlib
import functools
import logging
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from relay.client.connection import Closed, RelayConnection
from relay.client.disk import TransferRefused, safe_name
from relay.client.files import receive_files, send_files
from relay.client.options import HOME, Side, side_of
from relay.client.outcomes import EXITS, fail, run
from relay.client.patience import FIRST_PAUSE
from relay.client.peers import KeyFileError, own_key
from relay.client.pipes import pipe_through
from relay.client.probe import measure
from relay.client.reconnecting import DROPPED, LEFT, TIMED_OUT, reconnecting
from relay.client.streams import Streams
from relay.client.terminal import Bar, say
from relay.client.wire import fingerprint

log = logging.getLogger(__name__)


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
@click.option(
    "--vouching-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="a file with the token that vouches for this side's key to a peer with --signer; otherwise it comes "
    "from RELAY_VOUCHING_TOKEN",
)
@click.option("--peer-key", metavar="SHA256:...", help="accept only the peer with this key")
@click.option(
    "--signer",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="accept only a peer that shows a vouching token, signed for the public key in this PEM file",
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
    help="how long to try again while the relay can't be reached or restarts; `probe` tries once, "
    "unless told",
)
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Files and streams to the peer of a session, encrypted from end to end: the relay can't read them."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if sys.stderr.isatty():  # where there is a person to whom it says what goes on
        logging.getLogger("relay.client").setLevel(logging.INFO)
    context.obj = options


def _side(context: click.Context, *, own_legs: bool = False) -> Side:
    try:
        return side_of(context.obj, own_legs=own_legs)
    except (KeyFileError, OSError, ValueError) as error:
        fail(1, error)


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
        fail(1, error)
    click.echo(fingerprint(own.public_key().public_bytes_raw()))


@main.command()
@click.argument("session")
@click.pass_context
def pipe(context: click.Context, session: str) -> None:
    """Stdin to the peer, and what it sends to stdout.

    So it serves as ssh's ProxyCommand.
    """

    async def work() -> None:
        async with side.connection(session) as peer:
            await pipe_through(peer, sys.stdin.fileno(), sys.stdout.fileno())

    side = _side(context)
    run(work)


@main.command()
@click.option("--session", help="default: the one that the token is for")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.pass_context
def send(context: click.Context, session: str | None, files: tuple[Path, ...]) -> None:
    """Send files to the peer, which runs `receive`."""
    try:
        names = [safe_name(path.name) for path in files]
    except TransferRefused as error:
        fail(1, error)
    if len(set(names)) < len(names):
        raise click.UsageError("two of the files have the same name, and the receiver has one folder for all")
    side = _side(context)
    session_id = side.session(session)

    async def work(peer: RelayConnection) -> None:
        with Bar() as bar:
            await send_files(peer, list(files), bar.show, say)

    run(lambda: reconnecting(lambda: side.connection(session_id), work, seconds=side.retry))


@main.command()
@click.option("--session", help="default: the one that the token is for")
@click.option("--into", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(),
              help="folder for the files (default: this one)")  # fmt: skip
@click.option("--max-bytes", type=click.IntRange(0), metavar="BYTES",
              help="take no more than this in all (default: what the disk has room for)")  # fmt: skip
@click.pass_context
def receive(context: click.Context, session: str | None, into: Path, max_bytes: int | None) -> None:
    """Take the files that the peer sends; print where they are."""
    side = _side(context)
    session_id = side.session(session)

    async def work(peer: RelayConnection) -> list[Path]:
        with Bar() as bar:
            return await receive_files(peer, into, bar.show, say, max_bytes=max_bytes)

    for path in run(lambda: reconnecting(lambda: side.connection(session_id), work, seconds=side.retry)):
        click.echo(path)


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
    """Carry TCP connections made here to the peer's side.

    The peer runs `serve`. It goes on until it is stopped: when the peer has left, it waits for the next one.
    """
    side = _side(context)

    async def work(peer: RelayConnection) -> None:
        async with contextlib.AsyncExitStack() as listening:
            streams = Streams(peer)
            for bind, port, target in forwards:
                carry = functools.partial(streams.forward, target)
                await listening.enter_async_context(await asyncio.start_server(carry, bind, port))
                click.echo(f"{bind}:{port} leads to {target}", err=True)
            await streams.run()

    run(lambda: _standing(side, session, work))


@main.command()
@click.option(
    "--allow", multiple=True, required=True, metavar="HOST:PORT", help="a target that the peer may reach"
)
@click.argument("session")
@click.pass_context
def serve(context: click.Context, allow: tuple[str, ...], session: str) -> None:
    """Let the peer connect to what is allowed here.

    And to nowhere else. The peer runs `forward`. It goes on until it is stopped: when the peer has left, it
    waits for the next one.
    """
    for target in allow:
        if not re.fullmatch(r"(\[[^]]+\]|[^:]+):\d{1,5}", target):
            raise click.BadParameter(f"{target} is not HOST:PORT", param_hint="--allow")
    side = _side(context)

    async def work(peer: RelayConnection) -> None:
        await Streams(peer, allow).run()

    run(lambda: _standing(side, session, work))


async def _standing(side: Side, session: str, work: Callable[[RelayConnection], Awaitable[None]]) -> NoReturn:
    """`work` for as long as this side is left running: through quiet hours, for one peer after the other."""
    connect = functools.partial(side.connection, session)
    while True:
        try:
            await reconnecting(connect, work, seconds=side.retry, codes=DROPPED | TIMED_OUT)
        except Closed as error:
            if error.code not in LEFT:
                raise
        log.warning("the peer left; waiting for the next one")
        await asyncio.sleep(FIRST_PAUSE)  # should one come and leave for ever


@main.command()
@click.option(
    "--megabytes", type=click.IntRange(1, 10_000), default=20, show_default=True, help="to carry across"
)
@click.option("--session", help="default: the one that the token is for")
@click.argument("url")
@click.pass_context
def probe(context: click.Context, url: str, session: str | None, megabytes: int) -> None:
    """Measure the relay at URL, or say what refuses.

    It connects both legs itself, and prints round trip and throughput. The token is used twice, so it must
    not name a role.
    """
    context.obj["url"] = url
    if context.find_root().get_parameter_source("retry") is ParameterSource.DEFAULT:
        context.obj["retry"] = 0.0  # what is asked is how it is now
    side = _side(context, own_legs=True)
    session_id = side.session(session)

    async def work() -> None:
        trip, rate = await measure(
            side.connection(session_id), side.connection(session_id), megabytes * 10**6
        )
        click.echo(f"round trip {trip * 1000:.1f} ms")
        click.echo(f"throughput {rate / 1e6:.1f} MB/s, encrypted and decrypted by this one process")

    run(work)


if __name__ == "__main__":
    main(prog_name="python -m relay.client")
