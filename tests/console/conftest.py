"""A relay with its console, and Chromium."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.admin.test_browser import ARGUMENTS, CHROMIUM
from tests.relays import Relay, running


@pytest.fixture(scope="package")
def daphne(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """The relay as it ships, without any setting of its own."""
    with running("daphne spliced", tmp_path_factory.mktemp("console")) as relay:
        yield relay


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
