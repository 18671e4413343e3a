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

NOT_OURS = {
    # Close between the fragments of a message: legal (RFC 6455 section 5.4), but the `websockets` library, in
    # uvicorn's default protocol, answers it with 1002. A bare echo application on uvicorn fails it as well.
    "uvicorn": {"7.1.5"},
}
"""Cases that no application on that server can pass; listed so that we notice when that changes."""

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
    failed = {case for case, what in outcomes.items() if not PASSED.issuperset(what[:2])}
    words = "\n".join(f"{case}: {' / '.join(outcomes[case])}" for case in outcomes if case in failed)
    assert failed == NOT_OURS.get(server, set()), words
