"""The durable usage records and all that writes them."""

from relay.ledger.records import LegRecord, SessionRecord, log_line, milliseconds
from relay.ledger.writer import Ledger

__all__ = ["Ledger", "LegRecord", "SessionRecord", "log_line", "milliseconds"]
