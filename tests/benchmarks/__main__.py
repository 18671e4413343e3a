"""`python -m tests.benchmarks`, which is `make bench`: measure, print the report, keep it in var/bench/."""

import argparse
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from . import contestants, exports, files, plan, report
from .runner import Run, run

T = TypeVar("T")


def _names(known: dict[str, T]) -> "type[argparse.Action]":
    """An argparse action that turns NAME[,NAME] into the things of these names."""

    class Choose(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
            names = [name.strip() for name in str(values).split(",") if name.strip()]
            for name in names:
                if name not in known:
                    parser.error(f"{option_string}: no {name!r}; there are {', '.join(known)}")
            setattr(namespace, self.dest, [known[name] for name in known if name in names])

    return Choose


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run of a few minutes; coarser figures")
    parser.add_argument(
        "--only",
        metavar="NAME[,NAME]",
        action=_names(contestants.BY_NAME),
        default=list(contestants.CONTESTANTS),
        help=f"contestants: {', '.join(contestants.BY_NAME)}",
    )
    parser.add_argument(
        "--work",
        metavar="NAME[,NAME]",
        action=_names(plan.BY_NAME),
        default=list(plan.WORKLOADS),
        help=f"workloads: {', '.join(plan.BY_NAME)}",
    )
    parser.add_argument("--repeat", type=int, metavar="N", help="repetitions; 7, or 1 with --quick")
    parser.add_argument("--seconds", type=float, metavar="S", help="duration in place of each workload's own")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", default=contestants.VAR, help="default: var/bench"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it ran, whatever it found, 130 when it was interrupted."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    # SIGTERM ends it as Ctrl-C does: through the `finally` that stops all servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    repetitions = options.repeat or (1 if options.quick else 7)
    started = datetime.now(UTC)
    about = {
        "when": started.strftime("%Y-%m-%d %H:%M UTC"),
        "size": "quick" if options.quick else "full",
        "repetitions": repetitions,
        "machine": report.about_machine(),
    }
    work = Run(options.only, options.work, options.quick, repetitions, options.seconds)
    try:
        results = run(work, _tell)
        if plan.BY_NAME[plan.EXPORT] in options.work:
            sessions = work.options(plan.BY_NAME[plan.EXPORT])["sessions"]
            results[plan.EXPORT] = exports.run(sessions, repetitions, _tell)
        if plan.BY_NAME[plan.FILES] in options.work:
            megabytes = work.options(plan.BY_NAME[plan.FILES])["megabytes"]
            results[plan.FILES] = files.run(megabytes, repetitions, _tell)
    except KeyboardInterrupt:
        _tell("interrupted; all servers are stopped\n")
        return 130
    text = report.markdown(results, about)
    _tell("")
    stem = options.output / started.strftime("%Y%m%d-%H%M%S")
    report.write_json(stem.with_suffix(".json"), results, about)
    stem.with_suffix(".md").write_text(text)
    print(text)
    print(f"Written to {stem}.json and .md, {(datetime.now(UTC) - started).total_seconds():.0f} s in all.")
    return 0


def _tell(line: str) -> None:
    """Progress on stderr: one line that is written over, or nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
