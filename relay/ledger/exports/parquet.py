"""Parquet, for whoever loads an export into a warehouse. Needs pyarrow, the extra `parquet`."""

from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from typing import Any

from relay.ledger.exports.columns import Column
from relay.ledger.exports.formats import FormatError, Rows

GROUP_ROWS = 20_000
"""Rows in a row group, which is what is kept in memory at once: some 20 MB."""


class Parquet:
    """Zstandard-compressed; texts, 64-bit integers, doubles, and timestamps in milliseconds and UTC.

    The same rows are the same bytes with the same version of pyarrow, which names itself in the file.
    Raises `FormatError` without pyarrow.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        try:
            self._arrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError:
            raise FormatError(
                "Parquet needs the extra `parquet`, which is pyarrow: pip install 'pyarrow>=22'"
            ) from None
        self.rows = 0
        self._waiting: list[Rows] = []
        self._columns = columns
        types = {
            "text": self._arrow.string(),
            "integer": self._arrow.int64(),
            "number": self._arrow.float64(),
            "time": self._arrow.timestamp("ms", tz="UTC"),
        }
        self._schema = self._arrow.schema([(column.name, types[column.kind]) for column in columns])
        self._sink = _Sink()
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")

    def begin(self) -> bytes:
        return self._sink.take()

    def encode(self, rows: Rows) -> bytes:
        self.rows += len(rows)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= GROUP_ROWS:
            self._write_group()
        return self._sink.take()

    def end(self) -> bytes:
        self._write_group()
        self._writer.close()
        return self._sink.take()

    def _write_group(self) -> None:
        rows = list(chain.from_iterable(self._waiting))
        self._waiting = []
        if rows:
            values = zip(*rows, strict=True)
            arrays = [
                self._array(column, list(each)) for column, each in zip(self._columns, values, strict=True)
            ]
            table = self._arrow.Table.from_arrays(arrays, schema=self._schema)
            self._writer.write_table(table, row_group_size=len(rows))

    def _array(self, column: Column, values: list[Any]) -> Any:
        kind = self._schema.field(column.name).type
        if column.kind == "time":
            return self._arrow.array(values, self._arrow.string()).cast(kind)
        return self._arrow.array(values, kind)


class _Sink:
    """A file to write to, from which what was written is taken again."""

    closed = False

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: Any) -> int:
        self._chunks.append(bytes(chunk))
        return len(chunk)

    def take(self) -> bytes:
        taken, self._chunks = b"".join(self._chunks), []
        return taken

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False
