"""How the console is served: to whom, with which headers, and when not at all."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from django.test import Client

from relay import conf
from tests.relays import ROOT, Relay, running

MODULES = sorted((ROOT / "relay" / "static" / "relay" / "console").iterdir())


@pytest.fixture
def console(settings) -> Callable[[bool | None], Client]:
    def turned(on: bool | None) -> Client:
        settings.RELAY = {"console": on}
        conf.current.cache_clear()
        return Client()

    yield turned
    conf.current.cache_clear()


@pytest.mark.parametrize("off", [False, None])
def test_it_is_not_there_unless_it_is_turned_on(console, off: bool | None) -> None:
    answer = console(off).get("/console/")
    assert answer.status_code == 404
    assert answer.content == b"The console is off here; RELAY_CONSOLE=1 turns it on.\n"


def test_nobody_has_to_be_known_and_no_cookie_is_set(console) -> None:
    """The database is not asked either: pytest-django fails a test that does without its mark."""
    answer = console(True).get("/console/")
    assert answer.status_code == 200
    assert not answer.cookies
    assert "Cookie" not in answer.get("Vary", "")
    assert console(True).post("/console/").status_code == 405


def test_its_policy_lets_nothing_in_line_run_and_talks_to_this_relay_only(console) -> None:
    answer = console(True).get("/console/")
    policy = dict(part.strip().split(" ", 1) for part in answer["Content-Security-Policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) <= {"'self'", "'none'"}
    assert policy["connect-src"] == policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert answer["Referrer-Policy"] == "no-referrer"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Cross-Origin-Opener-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({}, 200),
        ({"RELAY_CONSOLE": "0"}, 404),
        ({"DATABASE_URL": "sqlite:///{folder}/db.sqlite3"}, 404),
        ({"DATABASE_URL": "sqlite:///{folder}/db.sqlite3", "RELAY_CONSOLE": "1"}, 200),
    ],
    ids=["embedded", "turned off", "with a database of its own", "turned on"],
)
def test_it_is_on_where_somebody_tries_the_relay_out(
    tmp_path: Path, environ: dict[str, str], status: int
) -> None:
    environ = {name: value.format(folder=tmp_path) for name, value in environ.items()}
    with running("daphne spliced", tmp_path, environ) as relay:
        assert httpx.get(f"{relay.http_url}/console/").status_code == status


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_no_part_of_it_is_used_after_an_update_without_asking(daphne: Relay, module: Path) -> None:
    url = f"{daphne.http_url}/static/relay/console/{module.name}"
    answer = httpx.get(url)
    assert answer.content == module.read_bytes()
    assert answer.headers["Cache-Control"] == "no-cache"
    again = httpx.get(url, headers={"If-Modified-Since": answer.headers["Last-Modified"]})
    assert again.status_code == 304
