"""What the log filters make of a record."""

import logging

from lemcloud.logs import OneLine


def record(message: str, *args: object, error: Exception | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error else None
    return logging.LogRecord("name", logging.ERROR, __file__, 1, message, args, exc_info)


def test_an_error_with_a_traceback_becomes_a_warning_that_names_it():
    told = record("receiving failed (%d)", 1, error=ConnectionError("refused"))
    assert OneLine().filter(told)
    assert logging.Formatter("%(levelname)s %(message)s").format(told) == (
        "WARNING receiving failed (1): ConnectionError: refused"
    )


def test_a_record_without_a_traceback_stays_as_it_is():
    told = record("plain %s", "words")
    assert OneLine().filter(told)
    assert (told.levelname, told.getMessage()) == ("ERROR", "plain words")
