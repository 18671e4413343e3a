"""`make mutants`: puts faults into a copy of the code, one at a time, and runs the tests that have to fail.

A fault that they don't see is a test that is missing. Exits with 1 when one survives that isn't listed as
surviving, when one that is listed so is caught after all, or when one can't be put into the code any more.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.faults import ROOT, Mutant, read, turn

COPIED = ("relay", "lemcloud", "tests", "manage.py", "pyproject.toml", "README.md", "Makefile")
"""What the tests need of the project's folder. `docker-compose.yml` and the like have tests of their own."""

SECONDS = 300.0
"""Deadline for one run of tests: a fault may make them hang, and is caught by that."""

CAUGHT, SURVIVED, BROKEN = "caught", "SURVIVED", "BROKEN"

PASSED, FAILED = 0, 1
"""Exit codes of pytest; others say that it could not run the tests."""


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; gives the exit status."""
    parser = argparse.ArgumentParser(prog="make mutants MUTANTS_ARGS=...", description=__doc__)
    parser.add_argument("names", nargs="*", help="a list (frames) or a single fault (frames-3); default: all")
    parser.add_argument("--turn", type=int, metavar="N", help="only some of them, others for each N")
    parser.add_argument("--size", type=int, default=20, help="how many a turn has (20)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    options = parser.parse_args(arguments)

    mutants = list(read())
    if options.names:
        mutants = [m for m in mutants if {m.name, m.name.rpartition("-")[0]} & set(options.names)]
    if options.turn is not None:
        mutants = turn(mutants, options.size, options.turn)
    if not mutants:
        print("no such fault")
        return 1
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        results = _run_all(mutants, Path(folder), options.jobs)
    bad = [f"{m.name} {m.file}: {m.promise}\n{output}" for m, outcome, output in results if outcome != CAUGHT]
    wrong = [m for m, outcome, _ in results if outcome != (SURVIVED if m.survives else CAUGHT)]
    print(*bad, sep="\n")
    caught = sum(outcome == CAUGHT for _, outcome, _ in results)
    seconds = time.monotonic() - began
    print(
        f"{caught} of {len(results)} faults caught ({100 * caught / len(results):.0f} %) in {seconds:.0f} s; "
        f"{len(wrong)} not as listed{': ' if wrong else ''}{', '.join(m.name for m in wrong)}"
    )
    return 1 if wrong else 0


def _run_all(mutants: list[Mutant], folder: Path, jobs: int) -> list[tuple[Mutant, str, str]]:
    copies: SimpleQueue[Path] = SimpleQueue()
    for number in range(jobs):
        copy = folder / str(number)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                copy.mkdir(exist_ok=True)
                shutil.copy2(source, copy / name)
        if (ROOT / "var" / "node").exists():
            (copy / "var").mkdir()
            (copy / "var" / "node").symlink_to((ROOT / "var" / "node").resolve())
        copies.put(copy)

    def run(mutant: Mutant) -> tuple[Mutant, str, str]:
        copy = copies.get()
        try:
            began = time.monotonic()
            outcome, output = _run(mutant, copy)
            print(
                f"{outcome:9}{mutant.name:16}{time.monotonic() - began:5.1f} s  {mutant.promise}", flush=True
            )
            return mutant, outcome, output
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(run, mutants))


def _run(mutant: Mutant, copy: Path) -> tuple[str, str]:
    """What became of one fault, and what pytest said of it."""
    if mutant.problem:
        return BROKEN, mutant.problem
    path = copy / mutant.file
    whole = path.read_text()
    path.write_text(whole.replace(mutant.old, mutant.new))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        *mutant.tests,
    ]
    # Files that are written within the same second as their cached bytecode would not be compiled anew.
    environ = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(copy / "var"),
    }
    with subprocess.Popen(
        command, cwd=copy, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # so that it ends the servers that it has started
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            return CAUGHT, "it hung"
        finally:
            path.write_text(whole)
    if process.returncode == FAILED:
        return CAUGHT, output
    return (SURVIVED if process.returncode == PASSED else BROKEN), output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
