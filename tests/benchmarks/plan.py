"""What is measured: the workloads with their sizes, and the job that the load generator is handed."""

from dataclasses import asdict, dataclass, fields
from typing import Any

KIB = 1024
MIB = 1024 * KIB

EXPORT = "export"
"""The workload that `exports` runs."""
FILES = "files"
"""The workload that `files` runs."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load. `fresh`: needs a server that carried nothing before, as it measures memory.

    `full` and `quick` are the keyword arguments of the function of this name in `load`, for either size of
    run; `once` workloads run in the first repetition only: what they measure hardly varies, or they repeat it
    themselves. `nodes`: for contestants of this many server processes, and for those named in `beside`; what
    has none runs by itself. `only`: for these alone, of which the first is what the others are compared with.
    """

    name: str
    title: str
    full: dict[str, Any]
    quick: dict[str, Any]
    fresh: bool = False
    once: bool = False
    nodes: int = 1
    beside: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


WORKLOADS = (
    Workload(
        "waiting",
        "waiting legs, then connects and disconnects",
        {"legs": 2000, "cycles": 10_000, "seconds": 60.0},
        {"legs": 500, "cycles": 1_000, "seconds": 2.0},
        fresh=True,
        once=True,
    ),
    Workload("small", "128 B frames, one pair, many per write", {"seconds": 1.0}, {"seconds": 0.25}),
    Workload(
        "paced", "128 B frames, one pair, one per write, 1 ms apart", {"seconds": 1.0}, {"seconds": 0.25}
    ),
    Workload("large", "64 KiB frames, one pair", {"seconds": 1.0}, {"seconds": 0.25}),
    Workload("huge", "1 MiB messages, one pair", {"seconds": 1.0}, {"seconds": 0.25}),
    Workload(
        "mixed", "100-1200 B with bursts of 16 KiB, both directions", {"seconds": 1.0}, {"seconds": 0.25}
    ),
    Workload("rtt", "128 B back and forth, one pair", {"seconds": 1.0}, {"seconds": 0.25}),
    Workload("pairs", "128 B frames, 200 pairs at once", {"seconds": 3.0}, {"seconds": 0.6}),
    Workload(
        "stalled",
        "a sender pushes at a peer that reads nothing",
        {"bytes_limit": 1024 * MIB, "seconds": 15.0},
        {"bytes_limit": 128 * MIB, "seconds": 1.0},
        fresh=True,
        once=True,
    ),
    Workload(
        "nodes-small", "128 B frames, one pair across two nodes", {"seconds": 3.0}, {"seconds": 1.0}, nodes=2
    ),
    Workload(
        "nodes-large", "64 KiB frames, one pair across two nodes", {"seconds": 3.0}, {"seconds": 2.0}, nodes=2
    ),
    Workload(
        "nodes-rtt",
        "128 B back and forth, one pair across two nodes",
        {"seconds": 3.0},
        {"seconds": 1.0},
        nodes=2,
    ),
    Workload(
        "nodes-same",
        "128 B frames, one pair on one node, with Redis and without",
        {"seconds": 3.0},
        {"seconds": 2.0},
        nodes=2,
        beside=("relay-daphne",),
    ),
    Workload(
        EXPORT,
        "ended sessions to CSV, from PostgreSQL",
        {"sessions": 1_000_000},
        {"sessions": 100_000},
        nodes=0,
    ),
    Workload(
        FILES,
        "a file from one process to another on one machine, from their starts to their exits",
        {"megabytes": 1000},
        {"megabytes": 200},
        nodes=0,
    ),
    Workload(
        "joins",
        "sessions of two legs that join, meet and leave",
        {"seconds": 5.0},
        {"seconds": 2.0},
        only=("ledger-off", "ledger-sqlite", "ledger-postgresql", "accepting"),
    ),
    Workload(
        "checkpoint",
        "one checkpoint of many sessions that have all changed",
        {"sessions": 10_000, "rounds": 3, "seconds": 10.0},
        {"sessions": 1_000, "rounds": 1, "seconds": 2.0},
        fresh=True,
        once=True,
        only=("ledger-sqlite", "ledger-postgresql"),
    ),
    Workload(
        "rtt-checkpoint",
        "128 B back and forth, one pair, while many sessions are checkpointed",
        {"sessions": 10_000, "rounds": 3, "seconds": 10.0},
        {"sessions": 1_000, "rounds": 1, "seconds": 2.0},
        fresh=True,
        once=True,
        only=("ledger-sqlite", "ledger-postgresql"),
    ),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes and how much of it may be on the way."""

    port: int
    pid: int
    """The server process whose CPU and memory count, with its children."""
    broker_pid: int | None = None
    """A process the server can't do without (Valkey), counted apart."""
    token_key: str | None = None
    """The HS256 key for tokens in the URL; None: the relay wants none."""
    backend_port: int | None = None
    """Set for a TCP proxy: the far leg is a server in the load generator, listening here."""
    window_frames: int = 1_000_000
    """Most frames on the way per direction, for a relay that loses what comes faster."""
    may_lose: bool = False
    """Frames that never arrive are counted, where they would otherwise fail the job."""
    broker_port: int | None = None
    """Where Valkey listens, to ask which commands it was sent."""
    far_port: int | None = None
    """The second node's: the far leg goes there."""
    far_pid: int | None = None
    database_pid: int | None = None
    """PostgreSQL, where the server records in one: counted apart, with its children."""
    pairs: bool = True
    """Whether a leg is closed by the relay when its peer leaves."""


@dataclass(frozen=True, slots=True)
class Job:
    """One measurement: a workload against a target."""

    workload: str
    options: dict[str, Any]
    target: Target

    def to_json(self) -> dict[str, Any]:
        """The job as plain data; `from_json` takes it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Job":
        """The job that `to_json` described."""
        known = {field.name for field in fields(Target)}
        target = Target(**{name: value for name, value in data["target"].items() if name in known})
        return cls(data["workload"], data["options"], target)
