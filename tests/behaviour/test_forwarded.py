"""Behind a proxy that is trusted the client is who the proxy says; nobody else can say who he is. Unspliced
Daphne sees connections as spliced Daphne does, so it's left out."""

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.behaviour.clients import DEADLINE, connect
from tests.relays import Relay, running
from tests.tokens import token

SERVERS = ["daphne spliced", "uvicorn"]


@pytest.fixture(scope="module", params=SERVERS)
def proxied(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Relay]:
    """A relay that trusts a proxy on this machine."""
    environ = {"RELAY_TRUSTED_PROXIES": "192.0.2.0/24, 127.0.0.1", "DJANGO_SUPERUSER_PASSWORD": "root"}
    with running(request.param, tmp_path_factory.mktemp("proxied"), environ) as relay:
        yield relay


@pytest.fixture(scope="module", params=SERVERS)
def direct(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Relay]:
    """A relay without a proxy."""
    with running(request.param, tmp_path_factory.mktemp("direct")) as relay:
        yield relay


async def recorded(relay: Relay, session_id: str, chain: str) -> str:
    """The address in the record of a leg that says where it comes from."""
    headers = {"Authorization": f"Bearer {token()}", "X-Forwarded-For": chain}
    async with connect(relay, session_id, additional_headers=headers):
        pass
    query = (
        "SELECT address FROM relay_relayleg JOIN relay_relaysession USING (session_uuid) WHERE session_id = ?"
    )
    async with asyncio.timeout(DEADLINE):
        while True:  # until the ledger has written it
            with contextlib.closing(sqlite3.connect(Path(relay.folder) / "relay.sqlite3")) as connection:
                for (address,) in connection.execute(query, (session_id,)):
                    return address
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("198.51.100.1, 127.0.0.1, 203.0.113.7", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("203.0.113.7, <script>", "127.0.0.1"),
    ],
    ids=["IPv4", "a client that put more into the chain", "IPv6", "no address"],
)
async def test_a_trusted_proxy_says_who_connects(proxied, session_id, chain, address):
    assert await recorded(proxied, session_id, chain) == address


async def test_nobody_else_can_say_who_he_is(direct, session_id):
    assert await recorded(direct, session_id, "203.0.113.7") == "127.0.0.1"


def log_in(relay: Relay, proto: str) -> tuple[httpx.Response, httpx.Response]:
    """The form of the admin and the answer to it, as a browser at https://localhost sends it."""
    headers = {"Host": "localhost", "X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": proto}
    with httpx.Client(base_url=relay.http_url, headers=headers) as browser:
        form = browser.get("/admin/login/")
        cookie = form.headers["Set-Cookie"].partition(";")[0]
        secret = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)
        assert secret is not None
        fields = {"username": "root", "password": "root", "csrfmiddlewaretoken": secret[1]}
        headers = {"Origin": "https://localhost", "Cookie": cookie}
        return form, browser.post("/admin/login/?next=/admin/", data=fields, headers=headers)


def test_the_admin_behind_tls_takes_its_forms_and_its_cookies_stay_on_tls(proxied):
    proxied.manage("createsuperuser", "--noinput", "--username", "root", "--email", "root@example.com")
    form, answer = log_in(proxied, "https")
    assert answer.status_code == 302
    for response in (form, answer):
        cookies = response.headers.get_list("Set-Cookie")
        assert cookies
        assert all("; Secure" in cookie for cookie in cookies)


def test_without_tls_the_cookies_can_be_used_and_a_form_of_another_origin_is_refused(proxied):
    form, answer = log_in(proxied, "http")
    assert "Secure" not in form.headers["Set-Cookie"]
    assert answer.status_code == 403


def test_who_is_no_proxy_can_not_pass_for_tls(direct):
    form = httpx.get(f"{direct.http_url}/admin/login/", headers={"X-Forwarded-Proto": "https"})
    assert "Secure" not in form.headers["Set-Cookie"]
