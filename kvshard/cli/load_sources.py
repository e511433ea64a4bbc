"""Records out of JSON lines and CSV: bounded in memory, each with its line number, and bad ones as data.

A source is read once, in order, in batches; after each batch the position says how far the file is read. Nothing here knows of
the service.
"""

import csv
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import msgspec

from kvshard.client.checks import check_value, invalid, key_bytes
from kvshard.errors import InvalidArgument
from kvshard.limits import VALUE_MAX_BYTES
from kvshard.schema import BOOLEAN, FLOAT, INTEGER

LINE_MAX_BYTES = VALUE_MAX_BYTES + 1024 * 1024
"""No legal document needs more, and a file without a line break must not be read whole."""

RAW_MAX_BYTES = 64 * 1024
"""Of a bad line, what is kept in the reject file: enough to find it, and a batch of bad ones stays small."""

_DISCARD_BYTES = 1024 * 1024
"""Read at a time when the rest of an overlong line is passed over."""

FORMATS = ("jsonl", "csv", "tsv")


@dataclass(frozen=True, slots=True)
class Record:
    """A key and a value to load. line: where it begins, from 1."""

    line: int
    key: bytes
    value: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class Reject:
    """A line that cannot be loaded, and why."""

    line: int
    error: str
    raw: bytes


@dataclass(slots=True)
class Batch:
    """Records in order, with the bad lines between them. offset, line: how far the source is read after them."""

    records: list[Record] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    offset: int = 0
    line: int = 0


class BadLine(Exception):
    """A line, or a CSV record, that is none."""


class Lines:
    """The lines of a stream with their place in it; one that is too long is passed over and raises BadLine."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.offset = 0
        self.line = 0
        self.raw = b""

    def move_to(self, offset: int, line: int) -> None:
        """Go on elsewhere in the file."""
        self._stream.seek(offset)
        self.offset, self.line = offset, line

    def next(self) -> bytes | None:
        """The next line with its line break; None at the end."""
        found = self._stream.readline(LINE_MAX_BYTES)
        if not found:
            return None
        self.line += 1
        self.offset += len(found)
        self.raw = found
        if len(found) == LINE_MAX_BYTES and not found.endswith(b"\n"):
            rest = found
            while rest and not rest.endswith(b"\n"):
                rest = self._stream.readline(_DISCARD_BYTES)
                self.offset += len(rest)
            raise BadLine(f"the line is longer than {LINE_MAX_BYTES:,} bytes")
        return found


class Source(ABC):
    """Records of one file format, over the lines of a stream."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    @abstractmethod
    def _next(self) -> Record | Reject | None:
        """The next record or bad line; None at the end."""

    def next_batch(self, max_records: int, max_bytes: int) -> Batch | None:
        """Up to so many records or bytes, at least one; None at the end. Bad lines count like records."""
        batch = Batch()
        size = 0
        while len(batch.records) + len(batch.rejects) < max_records and size < max_bytes:
            found = self._next()
            if found is None:
                break
            if isinstance(found, Record):
                batch.records.append(found)
                size += len(found.key) + len(found.value)
            else:
                batch.rejects.append(found)
                size += len(found.raw)
        if not batch.records and not batch.rejects:
            return None
        batch.offset, batch.line = self.lines.offset, self.lines.line
        return batch


class JsonLines(Source):
    """One JSON object a line; blank lines are passed over. The line itself becomes the value."""

    def __init__(self, lines: Lines, key_field: str) -> None:
        super().__init__(lines)
        # Decoding into a type with this one field checks the whole line's syntax, but builds no object for the rest.
        row = msgspec.defstruct("Row", [("key", str | int)], rename={"key": key_field})
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(row).decode

    def _next(self) -> Record | Reject | None:
        while True:
            try:
                raw = self.lines.next()
            except BadLine as error:
                return Reject(self.lines.line, str(error), self.lines.raw[:RAW_MAX_BYTES])
            if raw is None:
                return None
            value = raw.strip()
            if self.lines.line == 1:
                value = value.removeprefix(b"\xef\xbb\xbf")
            if value:
                return self._record(value, raw)

    def _record(self, value: bytes, raw: bytes) -> Record | Reject:
        try:
            key = key_bytes(str(self._decode(value).key))
            return Record(self.lines.line, key, check_value(value), raw)
        except InvalidArgument as error:
            text = error.message
        except (ValueError, RecursionError) as error:
            text = str(error)
        return Reject(self.lines.line, text, raw[:RAW_MAX_BYTES])


class Csv(Source):
    """Comma (or tab) separated values with a header line; each record becomes a JSON document, by the schema's types."""

    def __init__(self, lines: Lines, key_field: str, schema: Mapping[str, str], delimiter: str = ",") -> None:
        super().__init__(lines)
        csv.field_size_limit(VALUE_MAX_BYTES)
        self._taken: list[bytes] = []
        self._taken_bytes = 0
        self._rows = csv.reader(_Texts(self), delimiter=delimiter, strict=True)
        self._encode = msgspec.json.Encoder().encode
        try:
            self._header = next(self._rows, [])
        except (csv.Error, BadLine, UnicodeDecodeError) as error:
            raise invalid(f"the header line cannot be read: {error}", "file") from None
        if not self._header:
            raise invalid("the file has no header line", "file")
        if len(set(self._header)) != len(self._header):
            raise invalid(f"the header names a column twice: {', '.join(self._header)}", "file")
        if key_field not in self._header:
            raise invalid(f"there is no column {key_field!r}; columns are {', '.join(self._header)}", "key-field")
        self._key_at = self._header.index(key_field)
        self._convert = [_CONVERTERS.get(schema.get(name, ""), _as_text) for name in self._header]

    def take(self) -> str:
        """One line for csv.reader. Raises StopIteration at the end."""
        raw = self.lines.next()
        if raw is None:
            raise StopIteration
        self._taken_bytes += len(raw)
        if self._taken_bytes <= RAW_MAX_BYTES or not self._taken:
            self._taken.append(raw)
        return raw.decode("utf-8-sig" if self.lines.line == 1 else "utf-8")

    def _next(self) -> Record | Reject | None:
        while True:
            self._taken, self._taken_bytes = [], 0
            first_line = self.lines.line + 1
            try:
                row = next(self._rows, None)
                if row is None:
                    return None
                if row:
                    return self._record(first_line, row)
            except InvalidArgument as error:
                return self._reject(first_line, error.message)
            except UnicodeDecodeError:
                return self._reject(first_line, "the line is not UTF-8 text")
            except (csv.Error, BadLine, ValueError) as error:
                return self._reject(first_line, str(error))

    def _record(self, line: int, row: list[str]) -> Record:
        if len(row) != len(self._header):
            raise BadLine(f"{len(row)} columns where the header has {len(self._header)}")
        document = {}
        for name, cell, convert in zip(self._header, row, self._convert, strict=True):
            # An empty cell cannot be told from an absent value, and is taken for one.
            if cell:
                try:
                    document[name] = convert(cell)
                except ValueError as error:
                    raise BadLine(f"column {name}: {error}") from None
        value = check_value(self._encode(document))
        return Record(line, key_bytes(row[self._key_at]), value, b"".join(self._taken))

    def _reject(self, line: int, error: str) -> Reject:
        raw = b"".join(self._taken) or self.lines.raw
        return Reject(line, error, raw[:RAW_MAX_BYTES])


class _Texts(Iterator[str]):
    """Lines for csv.reader, which takes as many as a record needs: so the place in the file is always a record's end.

    Not a generator, since that would be over after its first exception.
    """

    def __init__(self, source: Csv) -> None:
        self._source = source

    def __next__(self) -> str:
        return self._source.take()


_INTEGER = re.compile(r"\s*[+-]?\d{1,19}\s*\Z", re.ASCII)
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _as_integer(cell: str) -> int:
    if _INTEGER.match(cell) is None:
        raise ValueError(f"{cell!r} is not an integer")
    return int(cell)


def _as_float(cell: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{cell!r} is not a number")
    return number


def _as_boolean(cell: str) -> bool:
    try:
        return _TRUTH[cell.strip().lower()]
    except KeyError:
        raise ValueError(f"{cell!r} is neither true nor false") from None


def _as_text(cell: str) -> str:
    return cell


_CONVERTERS: dict[str, Callable[[str], object]] = {INTEGER: _as_integer, FLOAT: _as_float, BOOLEAN: _as_boolean}
