"""What has to reach a log in fewer words."""

import logging


class OneLine(logging.Filter):
    """Has an expected error logged as a warning of one line: what failed, instead of where in a library."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; the record is changed in place. One without a traceback stays as it is."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}: {error}", None
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
