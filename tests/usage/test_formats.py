"""The formats of an export: as their readers document them, and the same bytes from both databases."""

import csv
import io
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_type_hints
from uuid import uuid4

import pytest
from cloudevents.core.v1.event import CloudEvent
from django.core.management import CommandError, call_command
from lago_python_client.models import BatchEvent
from pyarrow import parquet
from pydantic import ConfigDict, TypeAdapter
from stripe.params.billing import MeterEventCreateParams

from relay.ledger.exports import events, export
from relay.ledger.exports.formats import FormatError, Options
from relay.ledger.writing import rows
from relay.models import RelaySession
from tests.databases import Database, Postgres, as_default, sqlite_url
from tests.usage.samples import START, ended, live, uuid

EVENING = START + timedelta(hours=11, milliseconds=1)


@pytest.fixture
def filled(database: Database) -> Database:
    fill()
    return database


def fill() -> None:
    """Three accounts and none, a correction, times with and without fractions, a name that needs quoting."""
    rows.write(
        [
            ended(1, timestamp=START),
            ended(2, timestamp=START + timedelta(seconds=1.12), paired_ms=4_000_001),
            ended(3, timestamp=START + timedelta(days=27), account_id='\u00e9, "b"', reason="node_lost"),
            ended(4, timestamp=START + timedelta(days=28), account_id=None),
            ended(5, timestamp=EVENING, account_id="Zoe"),
            ended(6, timestamp=EVENING + timedelta(hours=1), account_id="Zoe"),
            live(7),
        ],
        "default",
    )
    RelaySession.objects.create(
        session_uuid=uuid(8),
        session_id="session-2",
        account_id="acme",
        corrects_id=uuid(2),
        revision=1,
        bytes_client_to_server=-502,
        total_bytes=-502,
        duration_seconds=-0.25,
        paired_seconds=-0.25,
        started_at=START + timedelta(days=1),
        timestamp=START + timedelta(days=1),
        reason="peer_left",
    )


def exported(form: str, options: Options | None = None, **choices: Any) -> bytes:
    return b"".join(export.stream(RelaySession.objects.all(), form, options, **choices))


def objects(form: str, options: Options | None = None) -> list[Any]:
    return [json.loads(line) for line in exported(form, options).splitlines()]


def test_the_same_rows_are_the_same_bytes_at_each_run_and_on_each_database(
    tmp_path: Path, postgres: Postgres, django_db_blocker: Any
) -> None:
    kinds = [(form, "session") for form in export.FORMATS]
    kinds += [(form, by) for form in ("csv", "jsonl", "parquet") for by in ("day", "month")]
    found: list[dict[tuple[str, str], bytes]] = []
    for url in (sqlite_url(tmp_path), postgres.create(f"formats-{uuid4().hex[:8]}")):
        with django_db_blocker.unblock(), as_default(url):
            call_command("migrate", verbosity=0)
            fill()
            found += [{kind: exported(kind[0], by=kind[1]) for kind in kinds} for _ in range(2)]
    assert found == [found[0]] * 4
    assert all(found[0].values())


def test_totals_per_account_and_day_are_exact_and_in_utc(filled: Database) -> None:
    found = exported("csv", by="day").decode().splitlines()
    names = found[0].split(",")
    assert names == [
        *(
            "period",
            "account_id",
            "sessions",
            "bytes_client_to_server",
            "bytes_server_to_client",
            "total_bytes",
        ),
        *("frames_client_to_server", "frames_server_to_client"),
        *("duration_seconds", "waiting_seconds", "paired_seconds"),
    ]
    assert found[1:] == [
        "2026-11-03,Zoe,1,1005,2000,3005,3,4,0.3,0.1,0.2",
        "2026-11-03,acme,2,2003,4000,6003,6,8,4000.401,0.2,4000.201",
        "2026-11-04,Zoe,1,1006,2000,3006,3,4,0.3,0.1,0.2",
        "2026-11-04,acme,0,-502,0,-502,0,0,-0.25,0.0,-0.25",
        '2026-11-30,"\u00e9, ""b""",1,1003,2000,3003,3,4,0.3,0.1,0.2',
        "2026-12-01,,1,1004,2000,3004,3,4,0.3,0.1,0.2",
    ]


@pytest.mark.parametrize("account", ["a\rb", 'a\r\n"b",', "a\nb", "=1+1", " ", "\u2028\U0001f600"])
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_any_account_comes_out_of_a_table_as_it_went_in(database: Database, account: str) -> None:
    """It comes from a token, and must not make a row of its own."""
    rows.write([ended(1, account_id=account), ended(2)], "default")
    read = csv.DictReader(io.StringIO(exported("csv").decode(), newline=""))
    assert [row["account_id"] for row in read] == [account, "acme"]
    assert [row["account_id"] for row in objects("jsonl")] == [account, "acme"]
    assert parquet.read_table(io.BytesIO(exported("parquet")))["account_id"].to_pylist() == [account, "acme"]


def test_totals_per_account_and_month(filled: Database) -> None:
    found = [json.loads(line) for line in exported("jsonl", by="month").splitlines()]
    figures = [(row["period"], row["account_id"], row["sessions"], row["total_bytes"]) for row in found]
    assert figures == [
        ("2026-11", "Zoe", 2, 6011),
        ("2026-11", "acme", 2, 5501),
        ("2026-11", '\u00e9, "b"', 1, 3003),
        ("2026-12", None, 1, 3004),
    ]


def test_parquet_has_typed_columns_and_the_rows_of_the_other_formats(filled: Database) -> None:
    table = parquet.read_table(io.BytesIO(exported("parquet")))
    types = {field.name: str(field.type) for field in table.schema}
    assert types["timestamp"] == "timestamp[ms, tz=UTC]"
    assert types["total_bytes"] == "int64"
    assert types["duration_seconds"] == "double"
    assert types["account_id"] == "string"
    found = table.to_pylist()
    for row in found:
        row["timestamp"] = row["timestamp"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert found == objects("jsonl")


def test_parquet_of_many_rows_has_groups_and_of_none_its_columns(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.ledger.exports.parquet.GROUP_ROWS", 3)
    monkeypatch.setattr("relay.ledger.exports.export.ROWS_IN_MEMORY", 2)
    file = parquet.ParquetFile(io.BytesIO(exported("parquet")))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 3]
    RelaySession.objects.filter(corrects__isnull=False).delete()
    RelaySession.objects.all().delete()
    assert parquet.read_table(io.BytesIO(exported("parquet"))).num_columns == 15


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_without_pyarrow_the_extra_is_named_and_nothing_is_written(
    filled: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    target = tmp_path / "usage.parquet"
    with pytest.raises(CommandError, match="needs the extra `parquet`") as error:
        call_command("export_usage", "--month", "2026-11", "--format", "parquet", "--output", str(target))
    assert error.value.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_cloudevents_are_what_the_specification_and_openmeter_ask_for(filled: Database) -> None:
    [batch] = objects("cloudevents")
    for event in batch:
        attributes = {**event, "time": datetime.fromisoformat(event["time"])}
        data = attributes.pop("data")
        CloudEvent(attributes=attributes, data=data)  # raises for what the specification doesn't allow
        assert event["subject"]
        assert all(isinstance(data[measure], int) for measure in events.MEASURES)
    assert batch[1] == {
        "specversion": "1.0",
        "id": "00000000-0000-0000-0000-000000000002.0",
        "source": "lem-relay",
        "type": "relay_session",
        "subject": "acme",
        "time": "2026-11-03T12:00:01.120Z",
        "datacontenttype": "application/json",
        "data": {
            "total_bytes": 3002,
            "bytes_client_to_server": 1002,
            "bytes_server_to_client": 2000,
            "frames_client_to_server": 3,
            "frames_server_to_client": 4,
            "duration_ms": 4_000_101,
            "paired_ms": 4_000_001,
            "waiting_ms": 100,
            "session_id": "session-2",
            "reason": "peer_left",
            "revision": 0,
        },
    }


def test_stripe_meter_events_are_its_parameters_within_its_limits(filled: Database) -> None:
    types = get_type_hints(MeterEventCreateParams, localns={"StripeContext": object, "Mapping": Mapping})
    found = objects("stripe", Options("duration_ms"))
    for event in found:
        assert set(event) >= MeterEventCreateParams.__required_keys__
        for name, value in event.items():
            config = ConfigDict(strict=True, arbitrary_types_allowed=True)
            TypeAdapter(types[name], config=config).validate_python(value)
        assert len(event["identifier"]) <= 100
        assert len(event["event_name"]) <= 100
        assert int(event["payload"]["value"]) == float(event["payload"]["value"])
    assert found[1] == {
        "event_name": "relay_duration_ms",
        "identifier": "00000000-0000-0000-0000-000000000002.0.duration_ms",
        "payload": {"stripe_customer_id": "acme", "value": "4000101"},
        "timestamp": int(datetime(2026, 11, 3, 12, 0, 1, tzinfo=UTC).timestamp()),
    }


def test_lago_events_are_its_model_in_batches_of_100(filled: Database) -> None:
    rows.write([ended(number) for number in range(1000, 1240)], "default")
    batches = objects("lago", Options("total_bytes", "relayed"))
    assert [len(batch["events"]) for batch in batches] == [100, 100, 46]
    for batch in batches:
        model = BatchEvent.parse_obj(batch)
        sent = [{**event, "timestamp": str(event["timestamp"])} for event in batch["events"]]
        assert [event.dict(exclude_unset=True) for event in model.events] == sent
    assert batches[0]["events"][1]["timestamp"] == int(START.timestamp()) + 1
    assert batches[0]["events"][0] == {
        "transaction_id": "00000000-0000-0000-0000-000000000001.0.total_bytes",
        "external_subscription_id": "acme",
        "code": "relayed",
        "timestamp": int(START.timestamp()),
        "properties": {"total_bytes": 3001},
    }


@pytest.mark.parametrize("form", ["cloudevents", "stripe", "lago"])
def test_a_correction_is_an_event_of_its_own_that_names_what_it_corrects(filled: Database, form: str) -> None:
    text = exported(form).decode()
    assert text.count("00000000-0000-0000-0000-000000000002.1") == 1
    assert "-000000000008" not in text
    assert "-502" in text


@pytest.mark.parametrize("form", ["cloudevents", "stripe", "lago"])
def test_no_two_events_have_the_same_id(filled: Database, form: str) -> None:
    found = objects(form)
    if form == "cloudevents":
        [found] = found
    if form == "lago":
        found = found[0]["events"]
    ids = [event.get("id") or event.get("identifier") or event.get("transaction_id") for event in found]
    assert len(set(ids)) == len(ids) == 6


def test_a_session_without_an_account_is_left_out_of_events_and_counted(
    filled: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("export_usage", "--month", "2026-12", "--format", "stripe")
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("0 rows (1 session without an account left out), 0 bytes written")


def test_events_that_stripe_is_too_late_for_are_warned_of(
    filled: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write([ended(20, timestamp=datetime.now(UTC) - timedelta(days=36))], "default")
    window = ("--from", "2000-01-01", "--to", "2999-01-01")
    call_command("export_usage", *window, "--format", "stripe")
    assert (
        "Stripe refuses events that are more than 35 days old; the oldest here is of"
        in capsys.readouterr().err
    )
    call_command("export_usage", *window, "--format", "lago")
    assert "refuses" not in capsys.readouterr().err


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--format", "stripe", "--by", "day"), "stripe has one event for each session"),
        (("--format", "csv", "--measure", "total_bytes"), "--measure and --event-name go with"),
        (("--format", "cloudevents", "--measure", "total_bytes"), "has all measures"),
        (("--format", "lago", "--event-name", "x" * 101), "at most 100 printable characters"),
        (("--format", "lago", "--event-name", "a\nb"), "at most 100 printable characters"),
    ],
)
def test_what_the_caller_can_mend_is_status_2(
    filled: Database, args: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CommandError, match=says) as error:
        call_command("export_usage", "--month", "2026-11", *args)
    assert error.value.returncode == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_format_says_what_it_lacks_before_it_reads(database: Database) -> None:
    with pytest.raises(FormatError):
        next(export.stream(RelaySession.objects.all(), "lago", by="month"))
