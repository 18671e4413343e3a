"""Made-up usage looks like a real month, is the same each time, and never mixes with what is billed."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db.models import F, Sum

from relay.ledger.writing import rows
from relay.management import generated
from relay.models import RelayLeg, RelaySession
from relay.rules.closing import CloseReason
from relay.rules.lifecycle import ENDINGS, State
from tests.databases import Database
from tests.usage.samples import ended

UNTIL = datetime(2026, 11, 30, tzinfo=UTC)


def made(count: int = 3000, days: int = 28, seed: int = 1) -> list[Any]:
    return list(generated.sessions(count, days, UNTIL, seed))


def test_the_same_seed_gives_the_same_records_and_another_one_others() -> None:
    assert made(50) == made(50)
    assert {record.session_uuid for record in made(50)}.isdisjoint(
        record.session_uuid for record in made(50, seed=2)
    )


def test_all_is_within_the_window_and_ended() -> None:
    for record in made():
        assert UNTIL - timedelta(days=28) <= record.started_at <= record.timestamp <= UNTIL
        for leg in record.legs:
            assert record.started_at <= leg.joined_at <= leg.left_at == record.timestamp


def test_every_reason_that_ends_a_session_is_there_where_it_can_be() -> None:
    records = made(len(generated.REASONS))
    assert {record.reason for record in records} == ENDINGS[State.WAITING] | ENDINGS[State.PAIRED]
    for record in made():
        state = State.WAITING if record.paired_at is None else State.PAIRED
        assert CloseReason(record.reason) in ENDINGS[state]
        assert len(record.legs) == (1 if record.paired_at is None else 2)


def test_accounts_are_skewed_and_days_have_a_rhythm() -> None:
    records = made()
    accounts = Counter(record.account_id for record in records).most_common()
    assert len(accounts) > 30
    assert accounts[0][1] > 10 * accounts[20][1]
    hours = Counter(record.started_at.hour for record in records)
    assert hours[18] > 5 * hours[4]
    days = Counter(record.started_at.weekday() for record in records)
    assert days[2] > 1.3 * days[6]


def test_the_command_writes_what_the_legs_bear_out_and_a_second_time_nothing(database: Database) -> None:
    for _ in range(2):
        call_command("generate_usage", sessions=300, until=UNTIL.isoformat(), days=3)
        assert RelaySession.objects.count() == 300
    received = Sum("legs__bytes_received")
    wrong = RelaySession.objects.annotate(received=received).exclude(received=F("total_bytes"))
    assert not wrong.exists()
    assert RelayLeg.objects.count() > 500


def test_the_command_refuses_where_there_are_real_records(database: Database) -> None:
    rows.write([ended(1)], "default")
    with pytest.raises(CommandError, match="real records") as caught:
        call_command("generate_usage", sessions=10)
    assert caught.value.returncode == 2
    assert RelaySession.objects.count() == 1


@pytest.mark.parametrize("options", [{"sessions": 0}, {"days": 400}, {"until": "soon"}])
def test_bad_options_end_with_status_2(options: dict[str, Any]) -> None:
    with pytest.raises(CommandError) as caught:
        call_command("generate_usage", **options)
    assert caught.value.returncode == 2
