"""What a run found: Markdown tables, the goals with their verdicts, and JSON."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from .contestants import BY_NAME as CONTESTANTS
from .contestants import TUTORIAL_NODES_WINDOW, TUTORIAL_WINDOW
from .exports import BARE as BARE_EXPORT
from .exports import OURS as OUR_EXPORT
from .exports import TITLES as EXPORTS
from .files import NOISE as OUR_FILES
from .files import PIPE as PIPED_FILES
from .files import PLAIN as PLAIN_FILES
from .files import TITLES as FILE_TITLES
from .files import WORMHOLE as WORMHOLE_FILES
from .plan import BY_NAME as WORKLOADS
from .plan import EXPORT, FILES, MIB
from .runner import Cell, Results
from .stats import paired_ratio, spread

OURS = "relay-daphne"
OURS_ON_NODES = "nodes-relay"
CORE, PUBSUB = "nodes-tutorial-redis-core", "nodes-tutorial-redis"
ENOUGH_CYCLES = 4000
"""Fewer connects and disconnects show caches and the collector filling up rather than a leak."""
ENOUGH_ROUNDS = 5
"""On a shared machine a figure differs by a third from round to round: fewer can't tell what is noise."""
FRAME_COMMANDS = 5
"""A node's own commands come in bursts, a second apart, of which a short run has one more or less."""
Format = Callable[[float], str]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _mib(value: float) -> str:
    return f"{value / MIB:.1f}"


def _yes_no(value: float) -> str:
    return "yes" if value else "no"


Column = tuple[str, str, Format]
CPU_PER_FRAME: Column = ("server CPU, us/frame", "cpu_us_per_frame", _number)
CPU_PER_GB: Column = ("server CPU, s/GB", "cpu_s_per_gb", _number)
_BUSY: list[Column] = [
    ("server busy", "server_busy", _percent),
    ("generator busy", "generator_busy", _percent),
]
_RATES: list[Column] = [("frames/s", "frames_per_s", _number), ("MB/s", "mb_per_s", _number)]
_BROKER: Column = ("broker CPU, us/frame", "broker_cpu_us_per_frame", _number)
_NODES: list[Column] = [
    ("sender's node, CPU s", "near_cpu_seconds", _number),
    ("receiver's node, CPU s", "far_cpu_seconds", _number),
    ("Valkey, CPU s", "broker_cpu_seconds", _number),
    ("in, s", "seconds", _number),
    ("generator busy", "generator_busy", _percent),
]
_LOST: Column = ("lost", "lost", lambda value: f"{value:.2%}")
_RSS: Column = ("RSS growth, MiB", "rss_growth", _mib)

COLUMNS: dict[str, list[Column]] = {
    "small": [CPU_PER_FRAME, *_RATES, _BROKER, _RSS, *_BUSY],
    "paced": [CPU_PER_FRAME, ("frames/s", "frames_per_s", _number), _BROKER, *_BUSY],
    "large": [CPU_PER_GB, *_RATES, _BROKER, _RSS, *_BUSY],
    "huge": [CPU_PER_GB, *_RATES, _BROKER, _RSS, *_BUSY],
    "mixed": [CPU_PER_GB, CPU_PER_FRAME, *_RATES, _BROKER, _RSS, *_BUSY],
    "rtt": [("p50, us", "p50_us", _number), ("p99, us", "p99_us", _number), CPU_PER_FRAME, _BROKER, *_BUSY],
    "pairs": [
        CPU_PER_FRAME,
        ("one pair, us/frame", "one_pair_cpu_us", _number),
        ("CPU to one pair", "cpu_to_one_pair", _number),
        ("slowest/fastest pair", "fairness", _number),
        ("frames/s", "frames_per_s", _number),
        *_BUSY,
    ],
    "waiting": [
        ("USS per leg, kB", "uss_per_leg", lambda value: f"{value / 1000:.1f}"),
        ("legs", "legs", _number),
        ("CPU per connect, ms", "cpu_ms_per_connect", _number),
        ("USS growth of the later half of the connects and disconnects, MiB", "churn_growth", _mib),
        ("of", "churn_cycles_measured", _number),
        ("USS then, MiB", "uss", _mib),
    ],
    "stalled": [
        _RSS,
        ("taken from the sender, MiB", "accepted_bytes", _mib),
        ("sender held back", "held_back", _yes_no),
        ("ended by the relay", "ended_by_relay", _yes_no),
    ],
    "nodes-small": [
        ("frames/s", "frames_per_s", _number),
        _LOST,
        CPU_PER_FRAME,
        _BROKER,
        ("commands to Redis per 10,000 frames", "commands_per_10k_frames", _number),
        *_NODES,
    ],
    "nodes-large": [
        ("MB/s", "mb_per_s", _number),
        _LOST,
        CPU_PER_GB,
        ("commands to Redis per MiB", "commands_per_mib", _number),
        *_NODES,
    ],
    "nodes-rtt": [
        ("p50, us", "p50_us", _number),
        ("p99, us", "p99_us", _number),
        CPU_PER_FRAME,
        _BROKER,
        *_NODES,
    ],
    "nodes-same": [
        CPU_PER_FRAME,
        ("frames/s", "frames_per_s", _number),
        ("commands to Redis a second", "commands_per_s", _number),
        ("when idle", "idle_commands_per_s", _number),
        ("more than that per 10,000 frames", "frame_commands_per_10k", _number),
        *_BUSY,
    ],
    FILES: [
        ("MB/s", "mb_per_s", _number),
        ("server CPU, s/GB", "server_cpu_s_per_gb", _number),
        ("sender's", "sender_cpu_s_per_gb", _number),
        ("receiver's", "receiver_cpu_s_per_gb", _number),
        ("in, s", "seconds", _number),
        ("file, MB", "file_bytes", lambda value: f"{value / 1e6:.0f}"),
    ],
    EXPORT: [
        ("seconds", "seconds", _number),
        ("CPU, s", "cpu_seconds", _number),
        ("peak memory, MB", "peak_bytes", lambda value: f"{value / 1e6:.0f}"),
        ("sessions", "sessions", _number),
        ("file, MB", "file_bytes", lambda value: f"{value / 1e6:.0f}"),
    ],
    "joins": [
        ("server CPU, us/join", "cpu_us_per_join", _number),
        ("joins/CPU s", "joins_per_cpu_s", _number),
        ("joins/s", "joins_per_s", _number),
        ("in, s", "seconds", _number),
        ("PostgreSQL, us/join", "database_cpu_us_per_join", _number),
        *_BUSY,
    ],
    "checkpoint": [
        ("CPU s, net of idle", "cpu_net", _number),
        ("gross", "cpu_gross", _number),
        ("sessions", "sessions", _number),
        ("us/session", "cpu_us_per_session", _number),
        ("event loop lag p99, ms", "lag_p99_ms", _number),
        ("longest", "lag_max_ms", _number),
        ("p99 without, ms", "lag_idle_p99_ms", _number),
    ],
    "rtt-checkpoint": [
        ("p99 to that without", "p99_ratio", _number),
        ("p99, us", "p99_us", _number),
        ("without", "p99_without_us", _number),
        ("p50, us", "p50_us", _number),
        ("without", "p50_without_us", _number),
        ("sessions", "sessions", _number),
    ],
}
"""The columns of each workload's table; the first is the one that is compared with ours."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal: what was asked, what was measured, whether it is met; None where it could not be measured."""

    goal: str
    measured: str
    met: bool | None


def _present(cell: Cell, figure: str) -> list[float]:
    return [value for value in cell.values(figure) if value is not None]


def _median(cell: Cell, figure: str, show: Format) -> str:
    values = _present(cell, figure)
    return show(median(values)) if values else "too few"


def _ratio(results: Results, workload: str, figure: str, ours: str, theirs: str) -> float | None:
    cells = results.get(workload, {})
    if ours not in cells or theirs not in cells:
        return None
    return paired_ratio(cells[ours].values(figure), cells[theirs].values(figure))


def verdicts(results: Results) -> list[Verdict]:
    """The goals of the issues, each with what this run measured for ours on plain Daphne."""
    found: list[Verdict] = []

    def ratio_goal(workload: str, figure: str, other: str, limit: float, text: str, ours: str = OURS) -> None:
        ratio = _ratio(results, workload, figure, ours, other)
        measured = "not measured" if ratio is None else f"{ratio:.3g} times"
        found.append(Verdict(text, measured, None if ratio is None else ratio <= limit))

    def rate_goal(workload: str, figure: str, other: str, least: float, text: str) -> None:
        ratio = _ratio(results, workload, figure, OURS_ON_NODES, other)
        measured = "not measured" if ratio is None else f"{ratio:.3g} times"
        found.append(Verdict(text, measured, None if ratio is None else ratio >= least))

    def own_goal(
        workload: str,
        figure: str,
        fits: Callable[[float], bool],
        show: Format,
        text: str,
        ours: str = OURS,
    ) -> None:
        cell = results.get(workload, {}).get(ours, Cell())
        values = _present(cell, figure)
        measured = show(median(values)) if values else "not measured"
        found.append(Verdict(text, measured, fits(median(values)) if values else None))

    tutorial = _ratio(results, "small", "cpu_us_per_frame", "tutorial-memory", OURS)
    found.append(
        Verdict(
            "128 B frames: the tutorial's way (in memory) costs at least 10 times our CPU per frame",
            "not measured" if tutorial is None else f"{tutorial:.3g} times",
            None if tutorial is None else tutorial >= 10,
        )
    )
    ratio_goal(
        "small", "cpu_us_per_frame", "picows", 1.0, "128 B frames: CPU per frame at most that of bare picows"
    )
    ratio_goal("small", "cpu_us_per_frame", "starlette", 0.5, "128 B frames: at most half of bare Starlette")
    for workload, label in (("large", "64 KiB frames"), ("huge", "1 MiB messages"), ("mixed", "mixed sizes")):
        ratio_goal(
            workload, "cpu_s_per_gb", "picows", 1.25, f"{label}: CPU per GB at most 1.25 times bare picows"
        )
        found.append(_less_than_all(results, workload, label))
        proxy = _ratio(results, workload, "cpu_s_per_gb", OURS, "tcp-proxy")
        found.append(
            Verdict(
                f"{label}: CPU per GB to the TCP proxy (shown only)",
                "not measured" if proxy is None else f"{proxy:.3g} times",
                None,
            )
        )
    ratio_goal("rtt", "p50_us", "starlette", 1.0, "round trip of 128 B, p50: no more than bare Starlette")
    own_goal(
        "pairs", "fairness", lambda x: x >= 0.5, _number, "200 pairs: slowest at least half of the fastest"
    )
    own_goal(
        "pairs",
        "cpu_to_one_pair",
        lambda x: x <= 1.3,
        lambda x: f"{x:.3g} times",
        "200 pairs: CPU per frame within 1.3 times of one pair",
    )
    own_goal(
        "waiting",
        "uss_per_leg",
        lambda x: x <= 30_000,
        lambda x: f"{x / 1000:.1f} kB",
        "a waiting leg: at most 30 kB",
    )
    own_goal(
        "waiting",
        "churn_growth",
        lambda x: x <= MIB,
        lambda x: f"{_mib(x)} MiB",
        "connects and disconnects: flat (at most 1 MiB over their later half)",
    )
    cycles = _present(results.get("waiting", {}).get(OURS, Cell()), "churn_cycles_measured")
    if cycles and min(cycles) < ENOUGH_CYCLES:
        found[-1] = replace(found[-1], measured=f"{found[-1].measured} over only {min(cycles):.0f}", met=None)
    own_goal(
        "stalled",
        "rss_growth",
        lambda x: x <= 8 * MIB,
        lambda x: f"{_mib(x)} MiB",
        "a peer that reads nothing: the process grows by at most 8 MiB",
    )
    small, large, there = "across nodes, 128 B frames/s", "across nodes, 64 KiB bytes/s", "across nodes, p50"
    rate_goal("nodes-small", "frames_per_s", CORE, 40, f"{small}: at least 40 times the tutorial's on core")
    rate_goal("nodes-small", "frames_per_s", PUBSUB, 20, f"{small}: at least 20 times its on pub/sub")
    rate_goal("nodes-large", "mb_per_s", PUBSUB, 4, f"{large}: at least 4 times the tutorial's on pub/sub")
    rate_goal("nodes-large", "mb_per_s", CORE, 0, f"{large}: to the tutorial's on core (shown only)")
    found[-1] = replace(found[-1], met=None)
    ratio_goal(
        "nodes-rtt", "p50_us", CORE, 0.5, f"{there}: at most half the tutorial's on core", OURS_ON_NODES
    )
    ratio_goal("nodes-rtt", "p50_us", PUBSUB, 1.0, f"{there}: less than its on pub/sub", OURS_ON_NODES)
    own_goal(
        "nodes-large",
        "commands_per_mib",
        lambda x: x <= 10,
        _number,
        "across nodes, commands to Redis per MiB of 64 KiB frames: at most 10",
        OURS_ON_NODES,
    )
    own_goal(
        "nodes-same",
        "frame_commands_per_10k",
        lambda x: x <= FRAME_COMMANDS,
        _number,
        f"on one node with Redis, commands to it for 10,000 frames: none (at most {FRAME_COMMANDS}, "
        "beyond those when idle)",
        OURS_ON_NODES,
    )
    ratio_goal(
        "nodes-same",
        "cpu_us_per_frame",
        OURS,
        1.15,
        "on one node with Redis, CPU per frame: that without Redis, within noise (at most 1.15 times)",
        OURS_ON_NODES,
    )
    _nodes_noise(results, found)
    export = "export of sessions to CSV"
    ratio_goal(
        EXPORT,
        "seconds",
        BARE_EXPORT,
        1.5,
        f"{export}: at most 1.5 times a bare psycopg cursor into csv.writer",
        OUR_EXPORT,
    )
    own_goal(
        EXPORT,
        "peak_bytes",
        lambda x: x < 150e6,
        lambda x: f"{x / 1e6:.0f} MB",
        f"{export}: peak memory under 150 MB",
        OUR_EXPORT,
    )
    return found + _of_files(results) + _of_the_ledger(results)


def _of_files(results: Results) -> list[Verdict]:
    """The goal of the client, and how it stands beside magic-wormhole."""
    piped, plain, wormhole = (
        _ratio(results, FILES, "mb_per_s", OUR_FILES, other)
        for other in (PIPED_FILES, PLAIN_FILES, WORMHOLE_FILES)
    )

    def measured(ratio: float | None) -> str:
        return "not measured" if ratio is None else f"{ratio:.3g} times"

    return [
        Verdict(
            "a file, encrypted: at least 0.6 times the throughput of `pipe` without encryption",
            measured(piped),
            None if piped is None else piped >= 0.6,
        ),
        Verdict(
            "a file, encrypted: throughput to that of the bare websockets library, unchecked (shown only)",
            measured(plain),
            None,
        ),
        Verdict(
            "a file, encrypted: throughput to magic-wormhole's through its transit relay (shown only)",
            measured(wormhole),
            None,
        ),
    ]


def _nodes_noise(results: Results, found: list[Verdict]) -> None:
    """The last goal found is one that a few rounds can't tell from noise."""
    rounds = len(_present(results.get("nodes-same", {}).get(OURS_ON_NODES, Cell()), "cpu_us_per_frame"))
    if 0 < rounds < ENOUGH_ROUNDS:
        found[-1] = replace(found[-1], measured=f"{found[-1].measured} over only {rounds}", met=None)


def _of_the_ledger(results: Results) -> list[Verdict]:
    """The goals of the usage ledger, on each database."""
    found = []
    for name, database in (("ledger-sqlite", "SQLite"), ("ledger-postgresql", "PostgreSQL")):
        for other, least, what in (
            ("ledger-off", 0.9, "with the ledger off"),
            ("accepting", 0.6, "of a bare consumer that accepts"),
        ):
            ratio = _ratio(results, "joins", "joins_per_cpu_s", name, other)
            rounds = len(_present(results.get("joins", {}).get(name, Cell()), "joins_per_cpu_s"))
            measured = "not measured" if ratio is None else f"{ratio:.3g} times"
            if ratio is not None and rounds < ENOUGH_ROUNDS:
                measured, ratio = f"{measured} over only {rounds}", None
            found.append(
                Verdict(
                    f"ledger on {database}: joins per CPU second at least {least} times those {what}",
                    measured,
                    None if ratio is None else ratio >= least,
                )
            )
        for workload, figure, limit, unit, what in (
            ("checkpoint", "cpu_net", 2.0, "s", "CPU beyond idle below 2 s"),
            ("checkpoint", "lag_p99_ms", 50.0, "ms", "event loop lag p99 below 50 ms"),
            ("rtt-checkpoint", "p99_ratio", 2.0, "times", "round trip p99 at most twice that without"),
        ):
            cell = results.get(workload, {}).get(name, Cell())
            values, sessions = _present(cell, figure), _present(cell, "sessions")
            many = f"{sessions[0]:,.0f}" if sessions else "10,000"
            measured = f"{median(values):.3g} {unit}" if values else "not measured"
            met = median(values) <= limit if values else None
            found.append(Verdict(f"checkpoint of {many} sessions on {database}: {what}", measured, met))
    return found


def _less_than_all(results: Results, workload: str, label: str) -> Verdict:
    """Ours below every WebSocket relay but picows, which has a goal of its own; the nearest one is shown."""
    ratios: dict[str, float] = {}
    for name in results.get(workload, {}):
        if name not in (OURS, "picows", "tcp-proxy"):
            ratio = _ratio(results, workload, "cpu_s_per_gb", OURS, name)
            if ratio is not None:
                ratios[name] = ratio
    goal = f"{label}: CPU per GB less than every other contestant"
    if not ratios:
        return Verdict(goal, "not measured", None)
    nearest = max(ratios, key=lambda name: ratios[name])
    return Verdict(
        goal, f"{ratios[nearest]:.3g} times {nearest}, of {len(ratios)} measured", ratios[nearest] < 1
    )


def markdown(results: Results, about: dict[str, Any]) -> str:
    """The whole report."""
    lines = [
        "# Lem Relay beside other relays",
        "",
        f"{about['when']}, {about['size']} run, {about['repetitions']} repetitions, {about['machine']}. "
        "Medians; +- is (max - min) / median; 'to ours' is the median of the ratios within each repetition. "
        "CPU is user and system time of the server process and its children, without the broker's. "
        "All frames are counted, and compared with what was sent: each large one of four, each small one of "
        "16; across nodes each one of 16 of ours, and all of the tutorial's. "
        "The sender keeps 256 KiB on the way (2 MiB of 64 KiB frames, 8 MiB of 1 MiB ones, 8 KiB in "
        f"each of 200 pairs), but {TUTORIAL_WINDOW} frames through the tutorial's layers, which drop "
        "beyond 100. Across two nodes it is 2 MiB (16 MiB of 64 KiB frames), so that the relay itself holds "
        f"it back, or {TUTORIAL_NODES_WINDOW} frames through the tutorial's, whose losses are counted.",
    ]
    lines += ["", "| contestant | |", "|---|---|"]
    names = {name: None for cells in results.values() for name in cells}
    lines += [f"| {name} | {_title(name)} |" for name in names]
    for workload, cells in results.items():
        lines += ["", f"## {workload}: {WORKLOADS[workload].title}", "", *_table(workload, cells, results)]
    lines += ["", "## Goals", "", "| goal | measured | |", "|---|---|---|"]
    words = {True: "met", False: "**NOT met**", None: "-"}
    lines += [f"| {v.goal} | {v.measured} | {words[v.met]} |" for v in verdicts(results)]
    return "\n".join(lines) + "\n"


def _title(name: str) -> str:
    return (EXPORTS | FILE_TITLES).get(name) or CONTESTANTS[name].title


def _table(workload: str, cells: dict[str, Cell], results: Results) -> list[str]:
    columns = COLUMNS[workload]
    if not any(cell.runs and any(_present(cell, _BROKER[1])) for cell in cells.values()):
        columns = [column for column in columns if column is not _BROKER]
    first = columns[0]
    heads = ["contestant", first[0], "+-", "to ours", *(head for head, _, _ in columns[1:])]
    lines = [f"| {' | '.join(heads)} |", f"|---{'|---:' * (len(heads) - 1)}|"]
    notes: list[str] = []
    for name, cell in cells.items():
        values = _present(cell, first[1])
        if cell.failures:
            notes += [
                "",
                f"`{name}` failed {len(cell.failures)} of {len(cell.runs)} times: {cell.failures[0]}",
            ]
        if cell.skipped or not values:
            why = f"n/a: {cell.skipped}" if cell.skipped else "FAILED, see below"
            lines.append(f"| {name} | {why} |" + " |" * (len(heads) - 2))
            continue
        first_of = next(iter(WORKLOADS[workload].only), OURS)
        ours = {EXPORT: OUR_EXPORT, FILES: OUR_FILES}.get(workload) or (
            first_of if WORKLOADS[workload].nodes == 1 else OURS_ON_NODES
        )
        ratio = _ratio(results, workload, first[1], name, ours)
        shown = [
            name,
            first[2](median(values)),
            _percent(spread(values)) if len(values) > 1 else "",
            f"{ratio:.2f}" if ratio is not None else "",
            *(_median(cell, figure, show) for _, figure, show in columns[1:]),
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return lines + notes


def about_machine() -> str:
    """Processor count and versions, for whoever compares two reports."""
    system = f"{platform.system()} {platform.release()}"
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {system}"


def write_json(path: Path, results: Results, about: dict[str, Any]) -> None:
    """All figures of all repetitions, and the verdicts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        **about,
        "contestants": {name: _title(name) for cells in results.values() for name in cells},
        "results": {w: {name: asdict(cell) for name, cell in cells.items()} for w, cells in results.items()},
        "goals": [asdict(verdict) for verdict in verdicts(results)],
    }
    path.write_text(json.dumps(data, indent=1) + "\n")
