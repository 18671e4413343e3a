"""The list of sessions, the page of one, their export, and closing them."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.forms import Script
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from unfold.admin import ModelAdmin
from unfold.decorators import display as labelled

from relay import conf
from relay.admin import accounts, charts, dashboard, operator
from relay.admin.filters import AccountFilter, FormFilter, ReasonFilter, StartedFilter, StateFilter
from relay.admin.readonly import ReadOnly
from relay.admin.timeline import recorded_at, timeline
from relay.ledger.exports import export
from relay.models import CORRECTION_FIELDS, RelayLeg, RelaySession
from relay.rules.closing import CloseReason
from relay.rules.units import human_bytes, human_duration, human_moment

DURATIONS = ("duration_seconds", "waiting_seconds", "paired_seconds")
COUNTERS = (
    *("bytes_client_to_server", "bytes_server_to_client", "total_bytes"),
    *("frames_client_to_server", "frames_server_to_client"),
)
LIVE_FIELDSETS = (("Record", {"fields": ("session_id", "account_id", "session_uuid", "node", "started_at")}),)
LIVE_LABELS = {"waiting": "warning", "paired": "success"}
CONTENT_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}


@admin.register(RelaySession)
class RelaySessionAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = (
        *("session_id", "state", "account_id", "client", "server", "client_to_server", "server_to_client"),
        *("duration", "close_reason", "started"),
    )
    list_filter = (StateFilter, ReasonFilter, AccountFilter, StartedFilter)
    list_filter_submit = True
    change_list_template = "relay/admin/change_list.html"
    list_before_template = "relay/admin/list_tools.html"
    list_disable_select_all = True
    list_fullwidth = True
    search_fields = ("session_id",)  # shows the box; get_search_results says what it searches
    search_help_text = "Start of a session id, an account or a participant's subject; or a record's UUID"
    ordering = ("-started_at", "-session_uuid")
    list_per_page = 50
    show_full_result_count = False  # a second count over everything, for a number that nobody needs
    show_facets = admin.ShowFacets.NEVER  # a count for each choice, over everything
    actions = ("close_sessions",)
    change_form_template = "relay/admin/change_form.html"
    change_form_outer_before_template = "relay/admin/session.html"
    fieldsets = (
        ("Record", {"fields": ("session_id", "account_id", "reason", "session_uuid", "node")}),
        ("Time (UTC)", {"fields": ("started_at", "paired_at", "timestamp", *DURATIONS)}),
        ("Traffic", {"fields": COUNTERS}),
    )

    class Media:
        css = {"all": ("relay/admin.css",)}  # noqa: RUF012 - Django's own form
        js = (Script("relay/refresh.js", defer=True),)

    # The list

    @labelled(description="state", ordering="timestamp", label=LIVE_LABELS)  # type: ignore[untyped-decorator]
    def state(self, session: RelaySession) -> str:
        return state_of(session)

    @admin.display(description="client")
    def client(self, session: RelaySession) -> str:
        return subject_of(session, RelayLeg.Role.CLIENT)

    @admin.display(description="server")
    def server(self, session: RelaySession) -> str:
        return subject_of(session, RelayLeg.Role.SERVER)

    @admin.display(description="to server", ordering="bytes_client_to_server")
    def client_to_server(self, session: RelaySession) -> str:
        return human_bytes(session.bytes_client_to_server)

    @admin.display(description="to client", ordering="bytes_server_to_client")
    def server_to_client(self, session: RelaySession) -> str:
        return human_bytes(session.bytes_server_to_client)

    @admin.display(description="duration", ordering="duration_seconds")
    def duration(self, session: RelaySession) -> str:
        return human_duration(session.duration_seconds)

    @admin.display(description="close reason", ordering="reason")
    def close_reason(self, session: RelaySession) -> str:
        return session.reason or f"live, as of {recorded_at(session).astimezone(UTC):%H:%M:%S}"

    @admin.display(description="started (UTC)", ordering="started_at")
    def started(self, session: RelaySession) -> str:
        return human_moment(session.started_at)

    def get_list_display(self, request: HttpRequest) -> Sequence[str]:
        """Participants only for those who may see legs."""
        shown: Sequence[str] = super().get_list_display(request)
        if request.user.has_perm("relay.view_relayleg"):
            return shown
        return [name for name in shown if name not in ("client", "server")]

    def get_queryset(self, request: HttpRequest) -> QuerySet[RelaySession]:
        """With the legs in one query for all rows."""
        queryset: QuerySet[RelaySession] = super().get_queryset(request)
        return queryset.prefetch_related("legs")

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

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """The list; without a filter, what is found is all there is, which saves counting that."""
        changelist: ChangeList = super().get_changelist_instance(request)
        # The form sends empty ones, too.
        changelist.has_active_filters = any(
            isinstance(spec, FormFilter) and spec.in_use for spec in changelist.filter_specs
        )
        if not changelist.has_active_filters and not changelist.query:
            changelist.full_result_count = changelist.result_count
        return changelist

    # One session

    def get_fieldsets(self, request: HttpRequest, obj: RelaySession | None = None) -> Any:
        """What only corrections have, for those; of a live session only what doesn't change any more."""
        fieldsets = super().get_fieldsets(request, obj)
        if obj is not None and obj.timestamp is None:
            return LIVE_FIELDSETS  # the figures are above, where they are refreshed
        if obj is not None and obj.corrects_id is not None:
            fieldsets = (("Correction", {"fields": CORRECTION_FIELDS}), *fieldsets)
        return fieldsets

    def get_readonly_fields(self, request: HttpRequest, obj: RelaySession | None = None) -> list[str]:
        return [field.name for field in RelaySession._meta.concrete_fields]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, obj: Any = None, **kwargs: Any
    ) -> HttpResponse:
        """The page of one session, with its legs and its timeline."""
        session: RelaySession = obj
        context |= {
            "title": session.session_id,
            "figures_url": reverse("admin:relay_relaysession_session_figures", args=[session.pk]),
            "every": dashboard.REFRESH_SECONDS,
            **self._session_context(request, session),
        }
        response: HttpResponse = super().render_change_form(request, context, *args, obj=obj, **kwargs)
        return response

    def _session_context(self, request: HttpRequest, session: RelaySession) -> dict[str, Any]:
        legs: list[RelayLeg] = []
        if request.user.has_perm("relay.view_relayleg"):
            legs = sorted(session.legs.all(), key=lambda leg: (leg.joined_at, leg.leg_uuid))
        return {
            "opts": self.opts,
            "session": session,
            "state": state_of(session),
            "recorded_at": recorded_at(session),
            "timeline": timeline(session, legs),
            "traffic": charts.traffic(session),
            "legs": legs,
            "may_close": session.timestamp is None and self.has_close_permission(request),
        }

    # Closing

    def has_close_permission(self, request: HttpRequest) -> bool:
        """Whether this user may close live sessions."""
        return request.user.has_perm("relay.close_session")

    @admin.action(permissions=["close"], description="Close live sessions")
    def close_sessions(self, request: HttpRequest, chosen: QuerySet[RelaySession]) -> HttpResponse | None:
        """Asks for confirmation, then ends those of `chosen` that are live."""
        live = list(chosen.filter(timestamp__isnull=True))
        if not live:
            self.message_user(request, "None of these sessions is live.", messages.WARNING)
            return None
        if request.POST.get("confirmed") != "yes":
            context = {
                **self.admin_site.each_context(request),
                "title": "Close " + (f"{len(live)} sessions?" if len(live) > 1 else "this session?"),
                "opts": self.opts,
                "sessions": live,
                "ended": chosen.count() - len(live),
                "reason": CloseReason.CLOSED_BY_OPERATOR,
            }
            return TemplateResponse(request, "relay/admin/close_confirmation.html", context)
        told = live
        try:
            operator.close([session.pk for session in live])
        except operator.NotReached as error:
            told = [session for session in live if session.pk in error.told]
            self.message_user(
                request,
                f"{_sessions(len(live) - len(told))} could not be told: the channel layer failed ({error}).",
                messages.ERROR,
            )
        if told:
            self._log_closed(request, told)
        return None

    def _log_closed(self, request: HttpRequest, told: list[RelaySession]) -> None:
        user = request.user
        assert isinstance(user, AbstractBaseUser)  # noqa: S101 - the admin lets nobody else in
        said = f"Closed by operator ({CloseReason.CLOSED_BY_OPERATOR.code})."
        LogEntry.objects.log_actions(user.pk, told, CHANGE, change_message=said)
        left = operator.still_live([session.pk for session in told])
        if closed := len(told) - left:
            self.message_user(request, f"Closed {_sessions(closed)}.", messages.SUCCESS)
        if left:
            self.message_user(
                request,
                f"{left} told to close, and not recorded as ended yet: their node is slow, or gone.",
                messages.WARNING,
            )

    # Further pages

    def get_urls(self) -> list[URLPattern]:
        """The list's own, and the export, the dashboard's figures and the totals of accounts."""
        wrap = self.admin_site.admin_view
        return [
            path("export/<str:form>/", wrap(self.export_view), name="relay_relaysession_export"),
            path("figures/", wrap(self.figures_view), name="relay_relaysession_figures"),
            path("accounts/", wrap(self.accounts_view), name="relay_relaysession_accounts"),
            path(
                "<uuid:pk>/figures/",
                wrap(self.session_figures_view),
                name="relay_relaysession_session_figures",
            ),
            *super().get_urls(),
        ]

    def export_view(self, request: HttpRequest, form: str) -> HttpResponse:
        """The ended sessions of the list's present filter and search, as a file."""
        self._check_view(request)
        if form not in CONTENT_TYPES:
            raise Http404
        chosen = self.get_changelist_instance(request).get_queryset(request)
        ended = chosen.filter(timestamp__isnull=False)
        most = conf.current().admin_export_rows
        if ended.order_by()[: most + 1].count() > most:
            self.message_user(
                request,
                f"More than {most:,} sessions: narrow the filter, or use manage.py export_usage.",
                messages.ERROR,
            )
            back = reverse("admin:relay_relaysession_changelist")
            return HttpResponseRedirect(f"{back}?{request.GET.urlencode()}")
        content = b"".join(export.stream(ended.prefetch_related(None), form))
        name = f"sessions-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.{form}"
        return HttpResponse(
            content,
            content_type=CONTENT_TYPES[form],
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    def figures_view(self, request: HttpRequest) -> HttpResponse:
        """The dashboard's content, which an open page asks for every few seconds."""
        self._check_view(request)
        return HttpResponse(dashboard.shown(request), headers={"Cache-Control": "no-store"})

    def session_figures_view(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """What the page of a session shows above its record; an open page of a live one asks for it."""
        self._check_view(request)
        session = get_object_or_404(self.get_queryset(request), pk=pk)
        shown = self._session_context(request, session)
        answer = render(request, "relay/admin/session_figures.html", shown)
        answer["Cache-Control"] = "no-store"
        return answer

    def accounts_view(self, request: HttpRequest) -> HttpResponse:
        """What each account comes to in a month."""
        self._check_view(request)
        context = {
            **self.admin_site.each_context(request),
            **accounts.context(request.GET, datetime.now(UTC)),
            "title": "Accounts",
        }
        return TemplateResponse(request, "relay/admin/accounts.html", context)

    def _check_view(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied


def _sessions(count: int) -> str:
    return f"{count} session{'' if count == 1 else 's'}"


def state_of(session: RelaySession) -> str:
    """`waiting`, `paired` or `ended`."""
    if session.timestamp is not None:
        return "ended"
    return "waiting" if session.paired_at is None else "paired"


def subject_of(session: RelaySession, role: str) -> str:
    """Who was in this role; the legs are prefetched."""
    return next((leg.subject for leg in session.legs.all() if leg.role == role), "")
