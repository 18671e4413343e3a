"""What is registered for the exit of the process is called, also in a worker of multiprocessing."""

import os
import subprocess
import sys

import pytest

from tests.processes import ROOT
from tests.tokens import SECRET_KEY

SCRIPT = """
import multiprocessing, sys
import django

django.setup()
from relay.ledger.writing.exits import at_exit, not_at_exit

def first(): print("registered first", flush=True)
def last(): print("registered last", flush=True)
def never(): print("never", flush=True)

def register():
    for call in (first, never, last):
        at_exit(call)
    not_at_exit(never)

if sys.argv[1] == "alone":
    register()
else:
    worker = multiprocessing.get_context("fork").Process(target=register)
    worker.start()
    worker.join()
"""


@pytest.mark.parametrize("process", ["alone", "worker"])
def test_it_is_called_once_the_latest_first_and_not_if_it_was_taken_back(process):
    command = [sys.executable, "-c", SCRIPT, process]
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "lemcloud.settings", "SECRET_KEY": SECRET_KEY}
    ended = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.splitlines() == ["registered last", "registered first"], ended.stderr
