"""How the console is served: to whom, with which headers, and when not at all."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from django.test import Client

from relay import conf
from tests.relays import ROOT, Relay

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
    ("environ", "on"),
    [
        ({}, True),
        ({"RELAY_CONSOLE": "0"}, False),
        ({"DATABASE_URL": "postgres://u:p@localhost/n"}, False),
        ({"REDIS_URL": "redis://localhost"}, False),
        ({"REDIS_URL": "redis://localhost", "RELAY_CONSOLE": "1"}, True),
    ],
    ids=["embedded", "turned off", "with PostgreSQL", "with Redis", "turned on"],
)
def test_it_is_on_where_somebody_tries_the_relay_out(
    tmp_path: Path, environ: dict[str, str], on: bool
) -> None:
    relay = Relay("daphne", tmp_path, environ)
    said = relay.manage("shell", "-v0", "-c", "from relay import conf; print(conf.current().console)")
    assert said.stdout == f"{on}\n"


def test_it_is_there_in_the_relay_as_it_ships(daphne: Relay) -> None:
    answer = httpx.get(f"{daphne.http_url}/console/")
    assert answer.status_code == 200
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_no_part_of_it_is_used_after_an_update_without_asking(daphne: Relay, module: Path) -> None:
    url = f"{daphne.http_url}/static/relay/console/{module.name}"
    answer = httpx.get(url)
    assert answer.content == module.read_bytes()
    assert answer.headers["Cache-Control"] == "no-cache"
    again = httpx.get(url, headers={"If-Modified-Since": answer.headers["Last-Modified"]})
    assert again.status_code == 304
