"""Sessions as the events that billing systems take; each line of a file is the body of one request.

An event's id is made of the session's UUID and its revision: 0, or the number of the correction. Its time is
the record's. So the same session is the same event in every export, and whoever gets it twice knows it.

A correction is an event of its own with signed differences. All three systems add up what they are sent, and
none lets a replaced figure take the place of one that is on an invoice already: Stripe cancels events of the
last 24 hours only, and ids that were seen are dropped as doubles by all of them. A difference bills right
both before and after the invoice; it counts in the period in which the correction was made, which is open.

Sessions without an account can't be billed to anybody, and are left out.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from relay.ledger.exports.columns import Column
from relay.ledger.exports.formats import FormatError, Options, Rows

DURATIONS = {
    "duration_ms": "duration_seconds",
    "paired_ms": "paired_seconds",
    "waiting_ms": "waiting_seconds",
}

MEASURES = (
    *("total_bytes", "bytes_client_to_server", "bytes_server_to_client"),
    *("frames_client_to_server", "frames_server_to_client", *DURATIONS),
)
"""What can be billed, all in whole numbers: durations in milliseconds, so that sums are exact."""

EVENTS_AT_ONCE = 100
"""Events in one request: the most that Lago takes."""

STRIPE_DAYS = 35
"""How late Stripe takes an event, in days."""

NAME_LENGTH = 100
"""Characters of an event's name and of its identifier at most, which is Stripe's limit."""


class Events:
    """One event format: `make` gives an event for a session, `pack` the lines for a list of events."""

    def __init__(
        self,
        columns: Sequence[Column],
        make: Callable[[dict[str, Any]], dict[str, Any]],
        pack: Callable[[list[dict[str, Any]]], Any] | None,
    ) -> None:
        self.rows = 0
        self._names = [column.name for column in columns]
        self._make = make
        self._pack = pack
        self._waiting: list[dict[str, Any]] = []

    def begin(self) -> bytes:
        return b""

    def encode(self, rows: Rows) -> bytes:
        for row in rows:
            session = dict(zip(self._names, row, strict=True))
            if session["account_id"]:
                self._waiting.append(self._make(session))
                self.rows += 1
        whole = len(self._waiting) // EVENTS_AT_ONCE * EVENTS_AT_ONCE
        ready, self._waiting = self._waiting[:whole], self._waiting[whole:]
        return self._lines(ready)

    def end(self) -> bytes:
        return self._lines(self._waiting)

    def _lines(self, events: list[dict[str, Any]]) -> bytes:
        return "".join(json.dumps(body) + "\n" for body in self._bodies(events)).encode()

    def _bodies(self, events: list[dict[str, Any]]) -> Iterator[Any]:
        if self._pack is None:
            yield from events
            return
        for first in range(0, len(events), EVENTS_AT_ONCE):
            yield self._pack(events[first : first + EVENTS_AT_ONCE])


def cloudevents(columns: Sequence[Column], options: Options) -> Events:
    """CloudEvents 1.0 in the JSON batch format, for OpenMeter's `POST /api/v1/events`.

    Content type `application/cloudevents-batch+json`, a JSON array a line. OpenMeter wants a `subject`, which
    is the account, drops doubles by `source` and `id`, takes `time` in RFC 3339, and meters a property of
    `data` by its path: `$.total_bytes`, aggregation SUM, event type `relay_session` unless another is given.

    Sources: CloudEvents 1.0.2 (spec.md and formats/json-format.md, section 4); OpenMeter's documentation
    (metering/events, concepts/usage-events) and its SDK's model `Event`.
    """
    name = options.event_name or "relay_session"

    def make(session: dict[str, Any]) -> dict[str, Any]:
        data: dict[str, Any] = {measure: _value(session, measure) for measure in MEASURES}
        data |= {key: session[key] for key in ("session_id", "reason", "revision")}
        if session["corrects"]:
            data["corrects"] = f"{session['corrects']}.0"
        return {
            "specversion": "1.0",
            "id": _identity(session),
            "source": "lem-relay",
            "type": name,
            "subject": session["account_id"],
            "time": session["timestamp"],
            "datacontenttype": "application/json",
            "data": data,
        }

    return Events(columns, make, lambda events: events)


def stripe(columns: Sequence[Column], options: Options) -> Events:
    """Stripe meter events, one a line: the parameters of `POST /v1/billing/meter_events`, which takes one.

    The account is sent as `stripe_customer_id` and has to be one. Values are whole numbers, as text; negative
    ones are taken, and a negative sum is billed as 0. `timestamp` is in seconds since 1970, not before the
    past 35 days and not later than 5 minutes from now. `identifier` and `event_name` have at most 100
    characters; an identifier is unique for at least 24 hours, and not necessarily longer.

    Sources: Stripe's API reference (billing/meter-event/create), its guide to recording usage with the API,
    and its SDK's `MeterEventCreateParams`.
    """

    def make(session: dict[str, Any]) -> dict[str, Any]:
        return {
            "event_name": options.name,
            "identifier": f"{_identity(session)}.{options.measure}",
            "payload": {
                "stripe_customer_id": session["account_id"],
                "value": str(_value(session, options.measure)),
            },
            "timestamp": _epoch(session["timestamp"]),
        }

    return Events(columns, make, None)


def lago(columns: Sequence[Column], options: Options) -> Events:
    """Lago events, up to 100 a line: the body of `POST /api/v1/events/batch`.

    The account is sent as `external_subscription_id`, the id that one gives a subscription oneself. `code` is
    the billable metric's, whose aggregation is the sum of the property named as the measure. Lago drops
    doubles by `transaction_id` within a subscription, or by it and `timestamp`, both of which are the
    record's. `timestamp` is in seconds since 1970.

    Sources: Lago's API reference (events/batch, events/event-object), its guides to ingesting usage and to
    the sum aggregation, its changelog (batches of 100), and its SDK's model `BatchEvent`.
    """

    def make(session: dict[str, Any]) -> dict[str, Any]:
        return {
            "transaction_id": f"{_identity(session)}.{options.measure}",
            "external_subscription_id": session["account_id"],
            "code": options.name,
            "timestamp": _epoch(session["timestamp"]),
            "properties": {options.measure: _value(session, options.measure)},
        }

    return Events(columns, make, lambda events: {"events": events})


FORMATS: dict[str, Callable[[Sequence[Column], Options], Events]] = {
    "cloudevents": cloudevents,
    "stripe": stripe,
    "lago": lago,
}


def check(options: Options) -> None:
    """Raises `FormatError` for a name that no system would take."""
    name = options.event_name
    if len(name) > NAME_LENGTH or not name.isprintable():
        raise FormatError(
            f"the event's name: expected at most {NAME_LENGTH} printable characters, got {name!r}"
        )


def _identity(session: dict[str, Any]) -> str:
    return f"{session['corrects'] or session['session_uuid']}.{session['revision']}"


def _value(session: dict[str, Any], measure: str) -> int:
    if measure in DURATIONS:
        return round(1000 * float(session[DURATIONS[measure]]))
    return int(session[measure])


def _epoch(timestamp: str) -> int:
    return int(datetime.fromisoformat(timestamp).timestamp())
