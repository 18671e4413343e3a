"""Usage records in Django's admin: to look at, never to change."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from relay.models import RelayLeg, RelaySession, UsageExport

DURATIONS = ("duration_seconds", "waiting_seconds", "paired_seconds")
COUNTERS = (
    *("bytes_client_to_server", "bytes_server_to_client", "total_bytes"),
    *("frames_client_to_server", "frames_server_to_client"),
)


def human_bytes(count: int) -> str:
    """Bytes in the largest binary unit that leaves at least 1 of it: `1.5 MiB`."""
    if abs(count) < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if abs(value) < 1023.95:  # which would show as 1024.0
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"


def human_duration(seconds: float) -> str:
    """Seconds as `1 h 02 min`, `2 min 05 s` or `3.2 s`."""
    if seconds < 59.95:  # which would show as 60.0
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


class ReadOnly:
    """Nobody adds, changes or deletes a record, whatever their permissions; those with `view` see it."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("live", "live"), ("ended", "ended")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[RelaySession]) -> QuerySet[RelaySession]:
        if self.value() in ("live", "ended"):
            return queryset.filter(timestamp__isnull=self.value() == "live")
        return queryset


class AccountFilter(admin.SimpleListFilter):
    """A box to type an account into: a list of all of them would be long, and slow to make."""

    title = "account"
    parameter_name = "account"
    template = "admin/relay/account_filter.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("", "")]  # none to choose from, but without any the filter would not be shown

    def queryset(self, request: HttpRequest, queryset: QuerySet[RelaySession]) -> QuerySet[RelaySession]:
        return queryset.filter(account_id=self.value()) if self.value() else queryset

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """One: what was typed, and the other filters' parameters, which the form has to keep."""
        others = {key: value for key, value in changelist.params.items() if key != self.parameter_name}
        lists = changelist.get_filters_params()
        kept = [(key, value) for key, values in lists.items() if key in others for value in values]
        if changelist.query:
            kept.append(("q", changelist.query))
        yield {"value": self.value() or "", "name": self.parameter_name, "others": kept}


class LegInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = RelayLeg
    extra = 0
    ordering = ("joined_at", "leg_uuid")
    fields = (
        *("role", "subject", "account_id", "address", "joined_at", "left_at", "delivered", "frames_received"),
        *("close_code", "close_reason", "node", "token_id"),
    )
    readonly_fields = ("delivered",)

    @admin.display(description="delivered to it")
    def delivered(self, leg: RelayLeg) -> str:
        return human_bytes(leg.bytes_received)


@admin.register(RelaySession)
class RelaySessionAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = (
        *("session_id", "state", "account_id", "client_to_server", "server_to_client"),
        *("duration", "reason", "started_at"),
    )
    list_filter = (StateFilter, "reason", AccountFilter)
    date_hierarchy = "started_at"
    search_fields = ("session_id",)  # shows the box; get_search_results says what it searches
    search_help_text = "Start of a session id, an account or a participant's subject; or a record's UUID"
    ordering = ("-started_at", "-session_uuid")
    list_per_page = 50
    show_full_result_count = False  # a second count over everything, for a number that nobody needs
    inlines = (LegInline,)
    fieldsets = (
        (None, {"fields": ("session_id", "state", "account_id", "reason", "session_uuid", "node")}),
        ("Time (UTC)", {"fields": ("started_at", "paired_at", "timestamp", *DURATIONS)}),
        ("Traffic", {"fields": COUNTERS}),
    )

    @admin.display(description="state", ordering="timestamp")
    def state(self, session: RelaySession) -> str:
        if session.timestamp is not None:
            return "ended"
        return "waiting" if session.paired_at is None else "paired"

    @admin.display(description="client to server", ordering="bytes_client_to_server")
    def client_to_server(self, session: RelaySession) -> str:
        return human_bytes(session.bytes_client_to_server)

    @admin.display(description="server to client", ordering="bytes_server_to_client")
    def server_to_client(self, session: RelaySession) -> str:
        return human_bytes(session.bytes_server_to_client)

    @admin.display(description="duration", ordering="duration_seconds")
    def duration(self, session: RelaySession) -> str:
        return human_duration(session.duration_seconds)

    def get_readonly_fields(self, request: HttpRequest, obj: RelaySession | None = None) -> list[str]:
        return [field.name for field in RelaySession._meta.concrete_fields] + ["state"]

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[RelaySession], search_term: str
    ) -> tuple[QuerySet[RelaySession], bool]:
        """A union of look-ups, each by its own index; one condition over all would read every row."""
        term = search_term.strip()
        if not term:
            return queryset, False
        sessions, legs = RelaySession.objects.order_by(), RelayLeg.objects.order_by()
        found = [
            sessions.filter(session_id__startswith=term).values("pk"),
            sessions.filter(account_id__startswith=term).values("pk"),
            legs.filter(subject__startswith=term).values("session_id"),
        ]
        with suppress(ValueError):
            found.append(sessions.filter(pk=UUID(term)).values("pk"))
        return queryset.filter(pk__in=found[0].union(*found[1:])), False


@admin.register(UsageExport)
class UsageExportAdmin(ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    """What went to whom; the sessions of an export are too many to list."""

    list_display = (
        *("destination", "made_at", "made_by", "format", "window_start", "window_end", "account_id"),
        *("sessions", "rows", "relayed", "delivered_at"),
    )
    list_filter = ("destination", "format")
    date_hierarchy = "made_at"
    search_fields = ("=digest", "output")
    search_help_text = "The SHA-256 of a file, or a part of its name"
    ordering = ("-made_at", "-export_uuid")
    show_full_result_count = False

    @admin.display(description="relayed", ordering="total_bytes")
    def relayed(self, export: UsageExport) -> str:
        return human_bytes(export.total_bytes)

    def get_readonly_fields(self, request: HttpRequest, obj: UsageExport | None = None) -> list[str]:
        return [field.name for field in UsageExport._meta.concrete_fields]
