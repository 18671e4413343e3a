"""The durable usage records and all that writes them."""

from relay.ledger.records import LegRecord, SessionRecord, cut, log_line, milliseconds
from relay.ledger.writer import Ledger

__all__ = ["Ledger", "LegRecord", "SessionRecord", "cut", "log_line", "milliseconds"]
