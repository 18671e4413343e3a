"""The durable usage records and all that writes them."""

from relay.ledger.records import LegRecord, SessionRecord, cut, log_line, milliseconds
from relay.ledger.writing.exits import at_exit
from relay.ledger.writing.writer import Ledger

__all__ = ["Ledger", "LegRecord", "SessionRecord", "at_exit", "cut", "log_line", "milliseconds"]
