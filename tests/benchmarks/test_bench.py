"""That the benchmark measures what it says: its statistics, its checks, its cleaning up. Nothing is timed."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from . import exports, files, plan, report, stats, usage
from .contestants import BY_NAME, ROOT, Contestant, Launch, Place
from .measure import ProcessTree, cpu_seconds
from .runner import Cell, LoadGenerator, Results, Run, Server, run
from .traffic import encode, make_trace, realistic_sizes


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert stats.percentile(values, 0.5) == 3
    assert stats.percentile(values, 0.99) == 5
    assert stats.percentile(values, 0) == 1
    assert stats.percentile(list(range(1, 101)), 0.99) == 99


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        stats.percentile([], 0.5)
    with pytest.raises(ValueError, match="share"):
        stats.percentile([1.0], 99)


def test_a_ratio_pairs_repetitions_so_that_drift_cancels() -> None:
    # The machine became ten times slower in the third repetition: ours costs half in each of them.
    assert stats.paired_ratio([1.0, 2.0, 10.0], [2.0, 4.0, 20.0]) == 0.5


def test_a_ratio_leaves_out_repetitions_that_failed() -> None:
    assert stats.paired_ratio([1.0, None, 3.0], [2.0, 4.0, None]) == 0.5
    assert stats.paired_ratio([None], [1.0]) is None


def test_the_spread_is_relative_to_the_median() -> None:
    assert stats.spread([9.0, 10.0, 12.0]) == pytest.approx(0.3)
    assert stats.spread([0.0, 0.0]) == 0


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_frames_are_encoded_as_the_rfc_has_it(size: int) -> None:
    payload, mask = os.urandom(size), os.urandom(4)
    plain, masked = encode(payload, None), encode(payload, mask)
    assert plain[0] == masked[0] == 0x82
    assert plain.endswith(payload)
    assert len(masked) == len(plain) + 4
    assert masked[1] == plain[1] | 0x80
    body = masked[len(masked) - size :]
    assert bytes(byte ^ mask[i % 4] for i, byte in enumerate(body)) == payload


def test_a_trace_knows_its_bytes_and_keeps_batches_small() -> None:
    trace = make_trace([10, 20, 30], batch_bytes=35)
    assert [batch.frames for batch in trace.masked] == [2, 1]
    assert trace.bytes_of(0) == 0
    assert trace.bytes_of(4) == 70
    assert [batch.frames for batch in make_trace([1] * 5, 100, batch_frames=2).plain] == [2, 2, 1]


def test_the_realistic_trace_is_always_the_same() -> None:
    sizes = realistic_sizes()
    assert sizes == realistic_sizes()
    assert set(sizes) <= {*range(100, 1201), 16384}


def test_cpu_is_that_of_the_process_and_its_children() -> None:
    burn = "x = 0\nwhile x < 3_000_000: x += 1\n"
    start = f"p = subprocess.Popen([sys.executable, '-c', {burn + 'input()'!r}], stdin=0)"
    parent = f"import subprocess, sys\n{start}\n"
    child = subprocess.Popen([sys.executable, "-c", parent + "p.wait()"], stdin=subprocess.PIPE)
    try:
        tree = ProcessTree(child.pid)
        deadline = time.monotonic() + 30
        while tree.cpu_seconds() < cpu_seconds(child.pid) + 0.05 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(tree.pids()) == 2
        assert tree.cpu_seconds() >= cpu_seconds(child.pid) + 0.05
        assert tree.memory().rss >= tree.memory().uss > 0
    finally:
        child.communicate(b"\n")
    assert tree.pids() == []
    with pytest.raises(ProcessLookupError):
        cpu_seconds(child.pid)


def _short(names: list[str], workloads: list[str], *others: Contestant) -> Results:
    work = [plan.BY_NAME[name] for name in workloads]
    return run(Run([*(BY_NAME[name] for name in names), *others], work, True, 1, seconds=0.2), lambda _: None)


def test_the_harness_measures_two_relays_side_by_side() -> None:
    results = _short(["picows", "websockets"], ["small", "mixed", "rtt", "stalled"])
    for cells in results.values():
        assert all(not cell.failures for cell in cells.values()), cells
    for cell in results["small"].values():
        (figures,) = cell.runs
        assert figures is not None
        assert figures["bytes"] == figures["frames"] * 128
        assert 0 < figures["cpu_us_per_frame"] < 10_000
    (figures,) = results["rtt"]["picows"].runs
    assert figures is not None
    assert 0 < figures["p50_us"] <= figures["p99_us"]
    (figures,) = results["stalled"]["websockets"].runs
    assert figures is not None
    assert figures["rss_growth"] < 64 * plan.MIB


LOSSY = """
import sys
from tests.benchmarks.peers import picows_relay
forward, count = picows_relay.Leg.on_ws_frame, 0
def lossy(self, transport, frame):
    global count
    count += 1
    if count != 500:
        forward(self, transport, frame)
picows_relay.Leg.on_ws_frame = lossy
picows_relay.uvloop.run(picows_relay.main(int(sys.argv[1])))
"""


def test_a_relay_that_loses_a_frame_fails_with_the_reason() -> None:
    def launch(place: Place) -> Launch:
        return Launch([sys.executable, "-c", LOSSY, str(place.port)])

    cell = _short([], ["small"], Contestant("lossy", "drops one frame", launch))["small"]["lossy"]
    assert cell.runs == [None]
    assert "not the one that was sent" in cell.failures[0] or "frames arrived" in cell.failures[0]


def test_a_contestant_that_cannot_start_says_why_and_the_others_go_on() -> None:
    broken = Contestant("broken", "fails", lambda _: Launch([sys.executable, "-c", "exit('no such relay')"]))
    cells = _short(["picows"], ["small"], broken)["small"]
    assert "no such relay" in cells["broken"].failures[0]
    assert cells["picows"].failures == []


def test_an_interrupted_run_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "--only", "websockets", "--work", "small"]
    bench = subprocess.Popen(
        [*command, "--seconds", "30", "--output", str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        started: list[psutil.Process] = []
        while len(started) < 2 and time.monotonic() < deadline:  # the server and the load generator
            started = psutil.Process(bench.pid).children(recursive=True)
            time.sleep(0.05)
        assert len(started) == 2
        bench.send_signal(signal.SIGINT)
        assert bench.wait(20) == 130
    finally:
        bench.kill()
        bench.wait()
    _, alive = psutil.wait_procs(started, timeout=5)
    assert alive == []
    assert list(tmp_path.iterdir()) == []


def _results(ours: float, picows: float) -> Results:
    def cell(value: float) -> Cell:
        return Cell(runs=[{"cpu_us_per_frame": value}])

    return {"small": {"relay-daphne": cell(ours), "picows": cell(picows)}}


@pytest.mark.parametrize(("ours", "met"), [(2.0, True), (4.0, True), (4.1, False)])
def test_a_goal_is_met_only_by_its_ratio(ours: float, met: bool) -> None:
    (verdict,) = [v for v in report.verdicts(_results(ours, 4.0)) if "that of bare picows" in v.goal]
    assert verdict.met is met


def test_a_goal_that_was_not_measured_is_not_called_met() -> None:
    (verdict,) = [
        v for v in report.verdicts(_results(1.0, 4.0)) if "Starlette" in v.goal and "half" in v.goal
    ]
    assert verdict.met is None
    assert verdict.measured == "not measured"


def test_a_failed_contestant_is_shown_with_its_reason() -> None:
    results = _results(1.0, 4.0)
    results["small"]["ws"] = Cell(runs=[None], failures=["3 of 4 frames arrived"])
    about = {"when": "", "size": "quick", "repetitions": 1, "machine": ""}
    text = report.markdown(results, about)
    assert "| ws | FAILED" in text
    assert "3 of 4 frames arrived" in text


def test_only_contestants_of_two_nodes_take_part_across_nodes() -> None:
    everyone = Run(list(BY_NAME.values()), plan.WORKLOADS, True, 1)
    names = {c.name for c in everyone.taking_part(plan.BY_NAME["nodes-small"])}
    assert names == {"nodes-relay", "nodes-tutorial-redis", "nodes-tutorial-redis-core"}
    assert names.isdisjoint(c.name for c in everyone.taking_part(plan.BY_NAME["small"]))
    assert "relay-daphne" in {c.name for c in everyone.taking_part(plan.BY_NAME["nodes-same"])}
    assert _short(["picows"], ["nodes-rtt"]) == {}


def test_two_nodes_are_measured_with_what_they_ask_of_their_broker() -> None:
    results = _short(["nodes-relay"], ["nodes-small", "nodes-rtt", "nodes-same"])
    assert all(not cells["nodes-relay"].failures for cells in results.values()), results
    (across,) = results["nodes-small"]["nodes-relay"].runs
    (same,) = results["nodes-same"]["nodes-relay"].runs
    assert across is not None
    assert same is not None
    assert across["commands"] > 0
    assert across["lost"] == 0
    assert across["near_cpu_seconds"] > 0
    assert across["far_cpu_seconds"] > 0
    assert same["far_cpu_seconds"] == 0


def test_losses_are_counted_where_they_are_expected() -> None:
    def launch(place: Place) -> Launch:
        return Launch([sys.executable, "-c", LOSSY, str(place.port)])

    work = replace(plan.BY_NAME["nodes-small"], nodes=1)
    lossy = Contestant("lossy", "drops one frame", launch, may_lose=True)
    cell = run(Run([lossy], [work], True, 1, seconds=0.2), lambda _: None)["nodes-small"]["lossy"]
    assert cell.failures == []
    (figures,) = cell.runs
    assert figures is not None
    assert 0 < figures["lost"] < 0.01


@pytest.mark.parametrize(("ours", "met"), [(20_000.0, True), (19_999.0, False)])
def test_a_goal_across_nodes_is_met_only_by_its_ratio(ours: float, met: bool) -> None:
    def cell(value: float) -> Cell:
        return Cell(runs=[{"frames_per_s": value}])

    results = {"nodes-small": {"nodes-relay": cell(ours), "nodes-tutorial-redis": cell(1000.0)}}
    (verdict,) = [v for v in report.verdicts(results) if "20 times" in v.goal]
    assert verdict.met is met


@pytest.mark.parametrize(("rounds", "met"), [(1, None), (5, True)])
def test_what_is_within_noise_takes_several_rounds_to_tell(rounds: int, met: bool | None) -> None:
    cell = Cell(runs=[{"cpu_us_per_frame": 0.4}] * rounds)
    (verdict,) = [
        v
        for v in report.verdicts({"nodes-same": {"nodes-relay": cell, "relay-daphne": cell}})
        if "within noise" in v.goal
    ]
    assert verdict.met is met


def test_the_export_runs_beside_a_bare_cursor_and_both_write_all_sessions() -> None:
    cells = exports.run(500, 1, lambda _: None)
    assert [cell.failures for cell in cells.values()] == [[], []]
    ours, bare = (cells[name].runs[0] for name in (exports.OURS, exports.BARE))
    assert ours is not None
    assert bare is not None
    assert ours["peak_bytes"] > bare["peak_bytes"] > plan.MIB
    text = report.markdown({plan.EXPORT: cells}, {"when": "", "size": "", "repetitions": 1, "machine": ""})
    assert "at most 1.5 times a bare psycopg cursor" in text


@pytest.mark.parametrize(("seconds", "peak", "met"), [(15.0, 149e6, True), (15.1, 150e6, False)])
def test_the_goals_of_the_export_are_its_ratio_and_its_memory(seconds: float, peak: float, met: bool) -> None:
    results = {
        plan.EXPORT: {
            exports.OURS: Cell(runs=[{"seconds": seconds, "peak_bytes": peak}]),
            exports.BARE: Cell(runs=[{"seconds": 10.0, "peak_bytes": 70e6}]),
        }
    }
    assert [v.met for v in report.verdicts(results) if "export of sessions" in v.goal] == [met, met]


def test_a_file_goes_over_encrypted_and_as_it_is() -> None:
    cells = files.run(3, 1, lambda _: None)
    for name in (files.NOISE, files.PIPE, files.PLAIN):
        assert cells[name].failures == []
        (figures,) = cells[name].runs
        assert figures is not None
        assert min(figures.values()) > 0
        assert figures["file_bytes"] == 3_000_000
    text = report.markdown({plan.FILES: cells}, {"when": "", "size": "", "repetitions": 1, "machine": ""})
    assert "at least 0.6 times the throughput" in text


@pytest.mark.parametrize(("rate", "met"), [(60.0, True), (59.0, False)])
def test_the_goal_of_a_file_is_its_throughput_beside_that_without_encryption(rate: float, met: bool) -> None:
    results = {
        plan.FILES: {
            name: Cell(runs=[{"mb_per_s": figure}])
            for name, figure in (
                (files.NOISE, rate),
                (files.PIPE, 100.0),
                (files.PLAIN, 200.0),
                (files.WORMHOLE, 50.0),
            )
        }
    }
    ours, *beside = [v for v in report.verdicts(results) if v.goal.startswith("a file, encrypted")]
    assert ours.met == met
    assert [v.measured for v in beside if v.met is None] == [
        f"{rate / 200:.3g} times",
        f"{rate / 50:.3g} times",
    ]


@pytest.mark.parametrize(("name", "rows"), [("ledger-sqlite", 1), ("ledger-off", 0)])
def test_with_the_ledger_on_each_session_is_recorded_and_with_it_off_none(name: str, rows: int) -> None:
    server, generator = Server(BY_NAME[name]), LoadGenerator()
    try:
        answer = generator.run(plan.Job("joins", {"seconds": 0.2}, server.target), 60)
        with sqlite3.connect(server.folder / "relay.sqlite3") as database:
            (recorded,) = database.execute("SELECT count(*) FROM relay_relaysession").fetchone()
        database.close()
    finally:
        generator.stop()
        server.stop()
    sessions = answer["figures"]["joins"] / 2 + usage.WARM_UP_PAIRS
    assert recorded == rows * sessions
    assert answer["figures"]["cpu_us_per_join"] > 0


def test_joins_of_legs_that_nobody_pairs_are_measured_as_well() -> None:
    (figures,) = _short(["accepting"], ["joins"])["joins"]["accepting"].runs
    assert figures is not None
    assert figures["joins"] > 0
    assert figures["database_cpu_us_per_join"] == 0


def test_a_checkpoint_and_round_trips_meanwhile_are_measured_on_either_database() -> None:
    options = {"sessions": 60, "rounds": 1, "seconds": 0.2}
    found = {}
    for workload, name in (("checkpoint", "ledger-postgresql"), ("rtt-checkpoint", "ledger-sqlite")):
        work = replace(plan.BY_NAME[workload], quick=options)
        cell = run(Run([BY_NAME[name]], [work], True, 1), lambda _: None)[workload][name]
        (found[workload],) = cell.runs
        assert found[workload] is not None, cell.failures
        assert found[workload]["sessions"] == 60
    assert found["checkpoint"]["cpu_net"] < found["checkpoint"]["cpu_gross"]
    assert 0 < found["checkpoint"]["lag_p99_ms"] <= found["checkpoint"]["lag_max_ms"]
    assert found["rtt-checkpoint"]["p99_ratio"] > 0


@pytest.mark.parametrize(("joins", "rounds", "met"), [(900.0, 5, True), (899.0, 5, False), (900.0, 4, None)])
def test_a_goal_of_the_ledger_is_met_only_by_its_ratio_over_several_rounds(
    joins: float, rounds: int, met: bool | None
) -> None:
    def cell(value: float) -> Cell:
        return Cell(runs=[{"joins_per_cpu_s": value}] * rounds)

    results = {"joins": {"ledger-postgresql": cell(joins), "ledger-off": cell(1000.0)}}
    (verdict,) = [v for v in report.verdicts(results) if "PostgreSQL" in v.goal and "ledger off" in v.goal]
    assert verdict.met is met


@pytest.mark.parametrize(("seconds", "met"), [(2.0, True), (2.1, False)])
def test_a_goal_of_a_checkpoint_says_of_how_many_sessions(seconds: float, met: bool) -> None:
    cell = Cell(runs=[{"cpu_net": seconds, "sessions": 9_900.0}])
    results = {"checkpoint": {"ledger-sqlite": cell}}
    (verdict,) = [v for v in report.verdicts(results) if "9,900 sessions on SQLite: CPU" in v.goal]
    assert verdict.met is met
