"""What the filter on the loggers of servers makes of a record, and what takes it off."""

import logging
import logging.config
import sys

import pytest
from hypercorn.logging import AccessLogAtoms
from uvicorn.config import LOGGING_CONFIG
from uvicorn.logging import AccessFormatter

from relay import logs

SECRET = "s3cr3t-of-a-person"


@pytest.fixture
def logged(request, caplog):
    """Gives the text that a logger of a server makes of a message and its arguments."""
    logger = logging.getLogger("uvicorn.error")

    def log(message: object, *args: object, **options: object) -> str:
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger.name):
            logger.addHandler(caplog.handler)
            try:
                logger.info(message, *args, **options)
            finally:
                logger.removeHandler(caplog.handler)
        return caplog.text

    return log


@pytest.mark.parametrize(
    ("message", "args", "left"),
    [
        ("%s %s?token=" + SECRET, (f"GET /relay/x?token={SECRET} HTTP/1.1", "b"), "GET /relay/x HTTP/1.1 b"),
        ("GET %s", (f"/relay/x?anything={SECRET}",), "/relay/x"),
        ('%s - "WebSocket %s" [accepted]', ("127.0.0.1:1", f"/relay/x?token={SECRET}"), "/relay/x"),
        ("< %s: %s", ("Authorization", f"Bearer {SECRET}"), "< Authorization"),
        ("< %s: %s", ("Authorization", f"Token {SECRET}"), "< Authorization"),
        ("< %s: %s", ("Sec-WebSocket-Protocol", f"lem.relay.v1, bearer.{SECRET}"), "lem.relay.v1"),
        ("query %s", (f"a=1&token={SECRET}&b=2",), "b=2"),
        ("token=%s", (SECRET,), "token="),
        ("refused %r", ({"token": f"eyJ{SECRET}.a.b"},), "refused"),
    ],
)
def test_a_secret_is_cut_out_of_message_and_arguments(logged, message, args, left):
    text = logged(message, *args)
    assert SECRET not in text
    assert left in text


def test_a_message_without_secrets_stays_as_it_is(logged):
    assert "Is it on? 3 of 4: yes" in logged("Is it on? %d of %d: %s", 3, 4, "yes")


def test_a_secret_is_cut_out_of_a_traceback(logged):
    try:
        raise ValueError(f"/relay/x?token={SECRET}")
    except ValueError:
        text = logged("failed", exc_info=True)
    assert "ValueError: /relay/x" in text
    assert SECRET not in text


def test_an_access_line_of_uvicorn_is_formatted_from_what_is_left():
    record = logging.LogRecord(
        "uvicorn.access", logging.INFO, __file__, 1, '%s - "%s %s HTTP/%s" %d',
        ("127.0.0.1:1", "GET", f"/health?token={SECRET}", "1.1", 200), None,
    )  # fmt: skip
    assert logging.getLogger("uvicorn.access").filter(record)
    formatter = AccessFormatter('%(client_addr)s - "%(request_line)s" %(status_code)s', use_colors=False)
    assert formatter.format(record) == '127.0.0.1:1 - "GET /health HTTP/1.1" 200 OK'


def test_an_access_line_of_hypercorn_is_formatted_from_what_is_left():
    scope = {
        "type": "http", "method": "GET", "path": "/health", "query_string": f"token={SECRET}".encode(),
        "headers": [(b"authorization", f"Bearer {SECRET}".encode())], "scheme": "http", "client": ("a", 1),
    }  # fmt: skip
    atoms = AccessLogAtoms(scope, {"status": 200}, 0.1)
    form = "%(R)s %(q)s %({authorization}i)s %({no-such}i)s %(s)s"
    record = logging.LogRecord("hypercorn.access", logging.INFO, __file__, 1, form, (atoms,), None)
    assert logging.getLogger("hypercorn.access").filter(record)
    assert record.getMessage() == f"GET /health ws token={logs.CUT} Bearer {logs.CUT} - 200"


def test_the_access_log_of_plain_daphne_has_no_query(capsys):
    """The `daphne` command has imported it before it imports the project; its lines go to no logger."""
    import daphne.access

    logs.install()
    logs.install()  # once more changes nothing
    details = {"client": "a:1", "path": f"/relay/x?token={SECRET}"}
    daphne.access.AccessLogGenerator(sys.stdout)("websocket", "connected", details)
    assert '"WSCONNECT /relay/x"' in capsys.readouterr().out


def test_the_filter_outlives_a_later_configuration_of_logging():
    logging.config.dictConfig({**LOGGING_CONFIG, "disable_existing_loggers": False})
    try:
        assert logs.unguarded() == []
    finally:
        for name in ("uvicorn", "uvicorn.access"):
            logging.getLogger(name).handlers.clear()
