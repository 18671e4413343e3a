"""Filters of the list of sessions, as one form of native controls: they work with keyboard and screen reader,
and none lists what may be thousands."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest

from relay.models import RelaySession

Sessions = QuerySet[RelaySession]


@dataclass(frozen=True, slots=True)
class Control:
    """One labelled control. `options` (values and texts) make it a choice of those."""

    name: str
    label: str
    value: str
    type: str = "search"
    options: tuple[tuple[str, str], ...] = ()


class FormFilter(admin.ListFilter):
    """A filter with controls of its own, for `list_filter_submit`."""

    template = "relay/admin/filter.html"
    parameters: tuple[str, ...]

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        for name in self.parameters:
            values = params.pop(name, [])
            self.used_parameters[name] = values[-1].strip() if values else ""

    def has_output(self) -> bool:
        return True

    def expected_parameters(self) -> list[str | None]:
        return list(self.parameters)

    def value(self, name: str) -> str:
        """What was given for a parameter, empty without."""
        return str(self.used_parameters[name])

    @property
    def in_use(self) -> bool:
        """Whether anything was given."""
        return any(self.used_parameters.values())

    def controls(self) -> list[Control]:
        raise NotImplementedError

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        """One: the controls, and whether any is used."""
        yield {"controls": self.controls(), "selected": False}


class StateFilter(FormFilter):
    title = "state"
    parameters = ("state",)

    STATES: tuple[tuple[str, str], ...] = (
        *(("live", "live"), ("waiting", "waiting for the peer"), ("paired", "paired"), ("ended", "ended")),
    )

    def controls(self) -> list[Control]:
        return [Control("state", "State", self.value("state"), options=(("", "any"), *self.STATES))]

    def queryset(self, request: HttpRequest, queryset: Sessions) -> Sessions:
        state = self.value("state")
        if state not in dict(self.STATES):
            return queryset
        queryset = queryset.filter(timestamp__isnull=state != "ended")
        if state in ("waiting", "paired"):
            queryset = queryset.filter(paired_at__isnull=state == "waiting")
        return queryset


class ReasonFilter(FormFilter):
    title = "close reason"
    parameters = ("reason",)

    def controls(self) -> list[Control]:
        reasons = [(value, str(text)) for value, text in RelaySession._meta.get_field("reason").flatchoices]
        return [Control("reason", "Close reason", self.value("reason"), options=(("", "any"), *reasons))]

    def queryset(self, request: HttpRequest, queryset: Sessions) -> Sessions:
        reason = self.value("reason")
        return queryset.filter(reason=reason) if reason else queryset


class AccountFilter(FormFilter):
    """A box to type an account into: a list of all of them would be long, and slow to make."""

    title = "account"
    parameters = ("account",)

    def controls(self) -> list[Control]:
        return [Control("account", "Account", self.value("account"))]

    def queryset(self, request: HttpRequest, queryset: Sessions) -> Sessions:
        account = self.value("account")
        return queryset.filter(account_id=account) if account else queryset


class StartedFilter(FormFilter):
    """From one day to another (UTC), both included."""

    title = "start"
    parameters = ("started_from", "started_to")

    def controls(self) -> list[Control]:
        return [
            Control("started_from", "Started on or after (UTC)", self.value("started_from"), "date"),
            Control("started_to", "Started on or before (UTC)", self.value("started_to"), "date"),
        ]

    def queryset(self, request: HttpRequest, queryset: Sessions) -> Sessions:
        if first := self._day("started_from"):
            queryset = queryset.filter(started_at__gte=first)
        if last := self._day("started_to"):
            queryset = queryset.filter(started_at__lt=last + timedelta(days=1))
        return queryset

    def _day(self, name: str) -> datetime | None:
        text = self.value(name)
        try:
            return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC) if text else None
        except ValueError as error:
            raise IncorrectLookupParameters(error) from error
