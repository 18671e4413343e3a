"""`make ends`: many ends of each kind over each path, and a table of what became of them."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "lemcloud.settings")
django.setup()

from tests.ends.kinds import KINDS  # noqa: E402 - needs Django set up
from tests.ends.rounds import PATHS, SHAPES, Tally, backends, path, play  # noqa: E402


def main(arguments: Sequence[str]) -> int:
    """Play what the command line asks for; gives the exit status."""
    parser = argparse.ArgumentParser(prog="make ends ENDS_ARGS=...", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="ends of each kind and path (100)")
    parser.add_argument("--path", action="append", choices=PATHS, help="only these paths")
    parser.add_argument("--kind", action="append", help="only these kinds")
    parser.add_argument("--shape", type=int, help="only the shape of this number, from 0 on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    kinds = [kind for kind in KINDS if not options.kind or kind.name in options.kind]
    failed = False
    if options.shape is not None:
        SHAPES[:] = [SHAPES[options.shape]]
    shapes = ", ".join(f"{size} B in {frames}" for size, frames in SHAPES)
    print(f"frames of each message, turn by turn: {shapes}\n")
    print(f"{'path':12}{'kind':20}{'rounds':>7}{'right':>7}{'wrong':>7}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ends-") as folder, backends() as (redis_url, postgres):
        for name in options.path or PATHS:
            steady = [kind for kind in kinds if kind.name != "drain"]
            for number, environ in enumerate(dict.fromkeys(kind.environ for kind in steady)):
                here = Path(folder, name, str(number))
                with path(name, here, redis_url, postgres, environ) as where:
                    for kind in steady:
                        if kind.environ == environ:
                            failed |= _tell(name, kind.name, play(kind, where, options.rounds, options.seed))
            # Each drain ends its relay.
            for kind in (kind for kind in kinds if kind.name == "drain"):
                tallies = []
                for lot in range(-(-options.rounds // 3)):
                    here = Path(folder, name, f"drain-{lot}")
                    with path(name, here, redis_url, postgres, kind.environ) as where:
                        tallies.append(play(kind, where, 3, options.seed + lot))
                tally = tallies[0]
                for more in tallies[1:]:
                    tally.right += more.right
                    tally.wrong += more.wrong
                failed |= _tell(name, kind.name, tally)
    return int(failed)


def _tell(path_name: str, kind_name: str, tally: Tally) -> bool:
    right, wrong = tally.right, tally.wrong
    print(f"{path_name:12}{kind_name:20}{right + len(wrong):7}{right:7}{len(wrong):7}", flush=True)
    for text in wrong[:3]:
        print(f"    {text}", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
