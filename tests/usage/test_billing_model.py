"""Whatever is exported, corrected and pruned in whatever order: each destination gets each record once."""

import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import call_command

from relay.ledger import corrections, pruning
from relay.ledger.writing import rows
from relay.models import ExportedSession, RelaySession, UsageExport
from tests.databases import Database
from tests.usage.samples import ended

START = datetime(2026, 1, 1, tzinfo=UTC)
STEPS = 30


class Billing:
    """The commands in a random order, and beside them what each destination was sent."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._chosen = random.Random(seed)
        self._folder = folder
        self._sessions = 0
        self.sent: dict[str, Counter[str]] = {}
        self.ever: set[str] = set()
        self.gone_before: dict[str, set[str]] = {}
        """What was pruned before a destination got its first export: it can't have that."""

    def step(self) -> None:
        step = self._chosen.choices((self._end, self._export, self._correct, self._prune), (4, 4, 2, 1))[0]
        step()

    def _end(self) -> None:
        first, self._sessions = self._sessions + 1, self._sessions + self._chosen.randint(1, 5)
        records = [
            ended(
                number,
                account_id=self._chosen.choice(("acme", "zoe", None)),
                timestamp=START + timedelta(hours=self._chosen.randint(0, 48)),  # late ones too
            )
            for number in range(first, self._sessions + 1)
        ]
        rows.write(records, "default")
        self.ever |= {str(record.session_uuid) for record in records}

    def _export(self) -> None:
        destination = self._chosen.choice(("billing", "audit"))
        narrowed: tuple[str, ...] = ()
        if self._chosen.random() < 0.3:
            narrowed = ("--to", (START + timedelta(hours=24)).isoformat())
        if self._chosen.random() < 0.3 and RelaySession.objects.filter(account_id="acme").exists():
            narrowed += ("--account", "acme")
        self.export(destination, *narrowed)

    def export(self, destination: str, *narrowed: str) -> None:
        output = self._folder / str(UsageExport.objects.count())
        new = ("--new", "--destination", destination, "--format", "jsonl", "--output", str(output))
        call_command("export_usage", *new, *narrowed)
        if destination not in self.sent:
            present = {str(key) for key in RelaySession.objects.values_list("pk", flat=True)}
            self.gone_before[destination] = self.ever - present
        sent = [json.loads(line)["session_uuid"] for line in output.read_text().splitlines()]
        self.sent.setdefault(destination, Counter()).update(sent)

    def _correct(self) -> None:
        session = RelaySession.objects.filter(corrects=None).order_by("pk").last()
        if session is not None:
            right = {"bytes_client_to_server": self._chosen.randint(0, 5)}
            made = corrections.correct(session.pk, right, "a test")
            if made is not None:
                self.ever.add(str(made.pk))

    def _prune(self) -> None:
        before = START + timedelta(hours=self._chosen.randint(0, 48))
        pruning.prune(before, pruning.destinations())


@pytest.mark.parametrize("seed", range(3))
def test_each_destination_gets_each_record_once(database: Database, tmp_path: Path, seed: int) -> None:
    billing = Billing(seed, tmp_path)
    for _ in range(STEPS):
        billing.step()
    for destination in ("billing", "audit"):
        billing.export(destination)
        sent = billing.sent[destination]
        assert set(sent.values()) <= {1}
        assert set(sent) == billing.ever - billing.gone_before[destination]
    present = set(RelaySession.objects.values_list("pk", flat=True))
    assert set(ExportedSession.objects.values_list("session", flat=True)) == present
    corrected = RelaySession.objects.exclude(corrects=None)
    kept = {*corrected.values_list("pk", flat=True), *corrected.values_list("corrects", flat=True)}
    done = pruning.prune(START + timedelta(days=30), pruning.destinations())
    assert done.deleted == len(present - kept) > 0
    assert set(RelaySession.objects.values_list("pk", flat=True)) == kept
