"""The usage records as tables: one row per session, one per leg. `relay.ledger` writes them, nobody else.

A row is live until its end is written (`timestamp` of a session, `left_at` of a leg); from then on it never
changes. There is no method here that changes one, and a correction is a new record.
"""

from typing import ClassVar

from django.db import models

from relay.rules.closing import MAX_REASON_BYTES, CloseReason

SESSION_ID_LENGTH = 128
"""Characters of a session id at most, as in the path of the URL."""

NAME_LENGTH = 255
"""Characters kept of an account, subject, token id or node; what identity providers commonly allow."""

CORRECTION_FIELDS = ("corrects", "revision", "note")
"""Those of a session that only a correction has, and only `relay.ledger.corrections` writes."""

DESTINATION_LENGTH = 64
"""Characters of the name of an export's destination at most: a word or two."""

ADDRESS_LENGTH = 64
"""Characters kept of an address: an IPv6 address with a zone takes up to 61."""


def close_reasons() -> list[tuple[str, str]]:
    """The choices of `RelaySession.reason`. Migrations name this function, so that a new one makes none."""
    return [(reason.value, reason.value) for reason in CloseReason]


class RelaySession(models.Model):
    """One rendezvous of two legs. The columns that the `session_closed` log line has bear its names."""

    session_uuid = models.UUIDField("UUID", primary_key=True, editable=False)
    session_id = models.CharField("session", max_length=SESSION_ID_LENGTH)
    account_id = models.CharField(  # noqa: DJ001 - null is "no account", as in the log line
        "account", max_length=NAME_LENGTH, null=True, blank=True
    )
    duration_seconds = models.FloatField("duration in seconds", default=0)
    waiting_seconds = models.FloatField("waited for the peer, in seconds", default=0)
    paired_seconds = models.FloatField("paired, in seconds", default=0)
    bytes_client_to_server = models.BigIntegerField("bytes from client to server", default=0)
    bytes_server_to_client = models.BigIntegerField("bytes from server to client", default=0)
    total_bytes = models.BigIntegerField("bytes both ways", default=0)
    frames_client_to_server = models.BigIntegerField("frames from client to server", default=0)
    frames_server_to_client = models.BigIntegerField("frames from server to client", default=0)
    timestamp = models.DateTimeField("ended", null=True, blank=True)
    reason = models.CharField(
        "close reason",
        max_length=32,
        blank=True,
        choices=close_reasons,
    )
    started_at = models.DateTimeField("started")
    paired_at = models.DateTimeField("paired", null=True, blank=True)
    node = models.CharField("opened by node", max_length=NAME_LENGTH, blank=True)
    # With a default of the database, as nodes of the release before go on writing while others are restarted.
    traffic = models.JSONField(
        "points of the curve of its bytes",
        default=list,
        db_default=models.Value([], models.JSONField()),
        editable=False,
    )
    # Of corrections only (`relay.ledger.corrections`); the ledger's upsert leaves them to the database.
    corrects = models.ForeignKey(
        "self",
        on_delete=models.PROTECT,
        related_name="corrections",
        null=True,
        blank=True,
        db_index=False,  # the constraint below has it
        verbose_name="corrects",
    )
    revision = models.PositiveSmallIntegerField("number of the correction", default=0, db_default=0)
    note = models.CharField("why", max_length=NAME_LENGTH, blank=True, default="", db_default="")

    class Meta:
        verbose_name = "session"
        permissions: ClassVar = [("close_session", "Can close a live session")]
        # Each index is named after the question that it answers.
        indexes: ClassVar = [
            models.Index(fields=["timestamp", "session_uuid"], name="relay_session_ended"),
            models.Index(
                fields=["account_id", "timestamp", "session_uuid"], name="relay_session_account_ended"
            ),
            models.Index(fields=["started_at", "session_uuid"], name="relay_session_newest_first"),
            models.Index(fields=["reason", "started_at", "session_uuid"], name="relay_session_reason"),
            models.Index(fields=["session_id", "started_at"], name="relay_session_by_id"),
            models.Index(
                fields=["node"], name="relay_session_live", condition=models.Q(timestamp__isnull=True)
            ),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="relay_session_total_is_sum",
                condition=models.Q(
                    total_bytes=models.F("bytes_client_to_server") + models.F("bytes_server_to_client")
                ),
            ),
            models.CheckConstraint(
                name="relay_session_end_has_reason",
                condition=models.Q(timestamp__isnull=True, reason="")
                | models.Q(timestamp__isnull=False) & ~models.Q(reason=""),
            ),
            models.CheckConstraint(
                name="relay_session_correction_is_numbered",
                condition=models.Q(corrects__isnull=True, revision=0)
                | models.Q(corrects__isnull=False, revision__gt=0, timestamp__isnull=False),
            ),
            models.UniqueConstraint(
                name="relay_session_correction_once",
                fields=["corrects", "revision"],
                condition=models.Q(corrects__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.session_id} ({self.reason or 'live'})"


class RelayLeg(models.Model):
    """One participant's WebSocket, from accept to close. Written only by the node that holds its socket."""

    class Role(models.TextChoices):
        CLIENT = "client"
        SERVER = "server"

    leg_uuid = models.UUIDField("UUID", primary_key=True, editable=False)
    # Protected: whoever prunes sessions has to say that the legs go too.
    session = models.ForeignKey(
        RelaySession, on_delete=models.PROTECT, related_name="legs", db_column="session_uuid"
    )
    role = models.CharField(max_length=6, choices=Role.choices)
    subject = models.CharField(max_length=NAME_LENGTH, blank=True)
    account_id = models.CharField(  # noqa: DJ001 - null is "no account", as in RelaySession
        "account", max_length=NAME_LENGTH, null=True, blank=True
    )
    token_id = models.CharField("token id (jti)", max_length=NAME_LENGTH, blank=True)
    address = models.CharField("network address", max_length=ADDRESS_LENGTH, blank=True)
    node = models.CharField(max_length=NAME_LENGTH, blank=True)
    joined_at = models.DateTimeField("joined")
    left_at = models.DateTimeField("left", null=True, blank=True)
    bytes_received = models.BigIntegerField("bytes delivered to it", default=0)
    frames_received = models.BigIntegerField("frames delivered to it", default=0)
    close_code = models.PositiveIntegerField("close code", null=True, blank=True)
    close_reason = models.CharField("close text", max_length=MAX_REASON_BYTES, blank=True)

    class Meta:
        verbose_name = "leg"
        indexes: ClassVar = [
            models.Index(fields=["subject"], name="relay_leg_subject"),
            models.Index(fields=["node"], name="relay_leg_live", condition=models.Q(left_at__isnull=True)),
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.subject}".strip()


class RelayNode(models.Model):
    """A process that writes records, while it has some that are live. See `relay.ledger.writing.nodes`."""

    node = models.CharField(primary_key=True, max_length=NAME_LENGTH, editable=False)
    place = models.CharField(max_length=NAME_LENGTH, blank=True)
    beat_at = models.DateTimeField("last heartbeat, by the clock of the database")

    class Meta:
        verbose_name = "node"

    def __str__(self) -> str:
        return self.node


class UsageExport(models.Model):
    """One file of sessions that went to a destination that bills from it: `relay.ledger.exports.deliveries`.

    Written once, in the transaction that says what is in the file; only `delivered_at` comes after it, when
    the file has its name, and `output`, should the file have to go elsewhere than it was meant to.
    """

    export_uuid = models.UUIDField("UUID", primary_key=True, editable=False)
    destination = models.CharField(max_length=DESTINATION_LENGTH)
    format = models.CharField(max_length=16)
    options = models.JSONField("options of the format", default=dict)
    window_start = models.DateTimeField("ended from", null=True, blank=True)
    window_end = models.DateTimeField("ended before", null=True, blank=True)
    account_id = models.CharField(  # noqa: DJ001 - null is "all accounts"
        "account", max_length=NAME_LENGTH, null=True, blank=True
    )
    sessions = models.BigIntegerField("sessions and corrections")
    rows = models.BigIntegerField("rows or events written")
    accounts = models.BigIntegerField()
    total_bytes = models.BigIntegerField("bytes relayed, both ways")
    file_bytes = models.BigIntegerField("size of the file in bytes")
    digest = models.CharField("SHA-256 of the file", max_length=64)
    output = models.TextField("file")
    made_at = models.DateTimeField("made")
    made_by = models.CharField(max_length=NAME_LENGTH)
    delivered_at = models.DateTimeField("file in place", null=True, blank=True)

    class Meta:
        verbose_name = "export"
        indexes: ClassVar = [models.Index(fields=["made_at"], name="relay_export_newest_first")]
        constraints: ClassVar = [
            models.UniqueConstraint(
                name="relay_export_one_unfinished",
                fields=["destination"],
                condition=models.Q(delivered_at__isnull=True),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.destination} {self.made_at:%Y-%m-%d %H:%M} UTC"


class ExportedSession(models.Model):
    """A session that is in an export: at most once per destination, which the database holds."""

    export = models.ForeignKey(
        UsageExport, on_delete=models.PROTECT, related_name="exported", db_column="export_uuid"
    )
    session = models.ForeignKey(
        RelaySession,
        on_delete=models.PROTECT,
        related_name="exported",
        db_column="session_uuid",
        db_index=False,  # the constraint below has it
    )
    destination = models.CharField(max_length=DESTINATION_LENGTH)

    class Meta:
        verbose_name = "exported session"
        constraints: ClassVar = [
            models.UniqueConstraint(name="relay_exported_once", fields=["session", "destination"]),
        ]

    def __str__(self) -> str:
        return f"{self.session_id} to {self.destination}"
