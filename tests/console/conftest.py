"""A relay with its console, and Chromium."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.admin.test_browser import ARGUMENTS, CHROMIUM
from tests.relays import Relay, running

RELAY_EXAMPLE = "--host-resolver-rules=MAP relay.example 127.0.0.1"


@pytest.fixture(scope="package")
def daphne(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """The relay as it ships, which has a name in a network, too."""
    environ = {"ALLOWED_HOSTS": "127.0.0.1,relay.example"}
    with running("daphne spliced", tmp_path_factory.mktemp("console"), environ) as relay:
        yield relay


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, RELAY_EXAMPLE])
        yield browser
        browser.close()
