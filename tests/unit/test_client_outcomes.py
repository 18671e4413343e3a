"""How the client's commands end: exit codes and the one line on stderr."""

import pytest

from relay.client.connection import SENTENCES, Closed, Unreachable
from relay.client.disk import TransferRefused
from relay.client.files import TransferBroken
from relay.client.noise import NoiseError
from relay.client.outcomes import EXITS, run
from relay.client.peers import KeyFileError, PeerRefused
from relay.client.streams import StreamError
from relay.client.wire import WireError

REFUSED_BY_RELAY, BROKEN, REFUSED_BY_PEER = 4, 5, 6

CODES = {
    1000: BROKEN, 1001: BROKEN, 1006: BROKEN, 1009: BROKEN, 1012: BROKEN, 1013: BROKEN, 3403: REFUSED_BY_PEER,
    4401: REFUSED_BY_RELAY, 4403: REFUSED_BY_RELAY, 4408: BROKEN, 4409: REFUSED_BY_RELAY, 4410: BROKEN,
    4411: BROKEN, 4412: BROKEN, 4413: BROKEN, 4414: BROKEN, 4415: BROKEN, 4429: REFUSED_BY_RELAY,
    4499: REFUSED_BY_RELAY,
}  # fmt: skip


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and line of a command that ends with `error`."""

    async def work() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run(work)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("lem-relay: ")
    assert printed.err.count("\n") == 1
    return exit_.value.code, printed.err


def test_every_close_code_that_has_its_words_has_its_exit_code() -> None:
    assert set(SENTENCES) <= set(CODES)


@pytest.mark.parametrize(("close", "code"), CODES.items())
def test_a_close_ends_a_command_with_its_exit_code_and_its_words(
    close: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code, line = ended(Closed(close), capsys)
    assert exit_code == code
    assert SENTENCES.get(close, f"(close code {close})") in line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unreachable(OSError("no route")), BROKEN),
        (TimeoutError(), BROKEN),
        (PeerRefused("another key"), REFUSED_BY_PEER),
        *((kind("wrong"), 1) for kind in (NoiseError, StreamError, WireError, TransferRefused)),
        *((kind("wrong"), 1) for kind in (TransferBroken, KeyFileError, OSError, ValueError)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_else_goes_wrong_has_its_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error, capsys)[0] == code


@pytest.mark.parametrize("code", [1, REFUSED_BY_RELAY, BROKEN, REFUSED_BY_PEER])
def test_the_help_says_what_an_exit_code_means(code: int) -> None:
    assert f"\n  {code}  " in EXITS
