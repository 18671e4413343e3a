"""Autobahn's cases, the conformance suite of WebSocket servers, through the relay on every path."""

import json
import subprocess
import sys

import pytest

from tests.relays import ROOT, running
from tests.tokens import token

PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}
"""What the suite itself counts as a pass, of the messages as of the close."""

CASES = 301
"""How many cases there are but for compression (12 and 13); fewer would be a hole."""

AT_ONCE = 16
"""Cases that run at the same time: most of them wait a second for something that mustn't come."""


@pytest.mark.timeout(180)
def test_every_case_of_autobahn_passes_through_the_relay(server, tmp_path):
    # The largest message of a case is 16 MiB.
    with running(server, tmp_path, {"RELAY_MAX_MESSAGE_BYTES": str(16 * 1024 * 1024)}) as relay:
        command = [sys.executable, "-m", "tests.conformance.autobahn_cases", relay.url, token(), str(AT_ONCE)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert run.returncode == 0, run.stderr
    outcomes = json.loads(run.stdout)
    assert len(outcomes) == CASES
    failed = {case: what for case, what in outcomes.items() if not PASSED.issuperset(what[:2])}
    assert not failed
