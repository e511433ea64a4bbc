"""The table of requests already done (`replication/dedup.py`) as rows of the engine.

    d shard client           -> born, floor, last_seqno
    d shard client number    -> seqno, result

One row for each result, because an entry adds one and a client may have many. A change is written in the batch that applies its
entry, so the rows are always the table at the applied seqno.
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from struct import Struct
from typing import Final, NamedTuple

from leaf import layout
from leaf.engine import Engine
from leaf.layout import Batch
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import DedupRecord, Entry

CHUNK_ROWS: Final = 1_024
"""Rows of one read while a table is loaded."""

_PREFIX: Final = Struct(">IH")
_MARKS: Final = Struct(">QQQ")
_NUMBER: Final = Struct(">Q")

_FORGOTTEN: Final = b"forgotten"


class _Held(NamedTuple):
    """Rows of one client: its birth, and the numbers of its results as a heap."""

    born: int
    numbers: list[int]


class DedupRows:
    """Which rows of a shard's table the engine holds, so that only differences are written."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._forgotten_through = 0
        self._clients: dict[str, _Held] = {}  # Oldest write first, as in the table.

    def __repr__(self) -> str:
        return f"DedupRows(shard={self._shard}, {len(self._clients)} clients)"

    def load(self, engine: Engine) -> DedupTable:
        """Read the table."""
        row = engine.get(layout.meta_key(self._shard, _FORGOTTEN))
        forgotten_through = layout.unpack_number(row) if row else 0
        marks: dict[str, tuple[int, int, int]] = {}
        results: dict[str, list[tuple[int, int, object]]] = {}
        start, end = layout.shard_range(ord("d"), self._shard)
        has_more = True
        while has_more:
            rows, has_more = engine.scan(start, end, CHUNK_ROWS)
            for key, value in rows:
                client, number = _parse(key)
                if number is None:
                    marks[client] = _MARKS.unpack(value)
                else:
                    found = (number, layout.unpack_number(value), value[_NUMBER.size :])
                    results.setdefault(client, []).append(found)
            start = rows[-1][0] + b"\0" if rows else end
        records = [
            DedupRecord(client, born, floor, last_seqno, tuple(results.get(client, ())))
            for client, (born, floor, last_seqno) in sorted(marks.items(), key=lambda item: item[1][2])
        ]
        self._note(records, forgotten_through)
        table = DedupTable()
        table.restore(records, forgotten_through)
        return table

    def write(self, entries: Iterable[Entry], table: DedupTable, batch: Batch) -> None:
        """Put into the batch what the entries changed in the table, which has them already."""
        touched: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.request is not None:
                written = touched.pop(entry.request.client, [])  # To the end: the order is that of the last writes.
                written.append(entry)
                touched[entry.request.client] = written
        for client, written in touched.items():
            self._write_client(client, written, table, batch)
        if table.forgotten_through != self._forgotten_through:
            self._forget(table, batch)

    def _write_client(self, client: str, written: list[Entry], table: DedupTable, batch: Batch) -> None:
        marks = table.marks_of(client)
        held = self._clients.pop(client, None)
        prefix = _prefix(self._shard, client)
        if held is not None and (marks is None or held.born != marks[0]):
            batch.delete_range(prefix, layout.end_of(prefix))
            held = None
        if marks is None:
            return  # Others pushed it out at once.
        born, floor, last_seqno = marks
        held = held or _Held(born, [])
        self._clients[client] = held
        batch.put(prefix, _MARKS.pack(born, floor, last_seqno))
        for entry in written:
            assert entry.request is not None
            # What was pushed out again, by later numbers or with its whole client, before this was called, gets no row.
            if entry.request.number > floor and entry.seqno > born:
                assert isinstance(entry.result, bytes)
                batch.put(prefix + _NUMBER.pack(entry.request.number), _NUMBER.pack(entry.seqno) + entry.result)
                heappush(held.numbers, entry.request.number)
        while held.numbers and held.numbers[0] <= floor:
            batch.delete(prefix + _NUMBER.pack(heappop(held.numbers)))

    def _forget(self, table: DedupTable, batch: Batch) -> None:
        self._forgotten_through = table.forgotten_through
        batch.put(layout.meta_key(self._shard, _FORGOTTEN), layout.pack_number(self._forgotten_through))
        for client in list(self._clients):
            if table.marks_of(client) is not None:
                break  # The table drops the oldest first.
            del self._clients[client]
            prefix = _prefix(self._shard, client)
            batch.delete_range(prefix, layout.end_of(prefix))

    def replace(self, records: Iterable[DedupRecord], forgotten_through: int, batch: Batch) -> None:
        """Put into the batch what makes these records, oldest client first, the whole table."""
        records = list(records)
        batch.delete_range(*layout.shard_range(ord("d"), self._shard))
        batch.put(layout.meta_key(self._shard, _FORGOTTEN), layout.pack_number(forgotten_through))
        for record in records:
            prefix = _prefix(self._shard, record.client)
            batch.put(prefix, _MARKS.pack(record.born, record.floor, record.last_seqno))
            for number, seqno, result in record.results:
                assert isinstance(result, bytes)
                batch.put(prefix + _NUMBER.pack(number), _NUMBER.pack(seqno) + result)
        self._note(records, forgotten_through)

    def _note(self, records: Iterable[DedupRecord], forgotten_through: int) -> None:
        self._forgotten_through = forgotten_through
        self._clients = {each.client: _Held(each.born, [number for number, _, _ in each.results]) for each in records}


def _prefix(shard: int, client: str) -> bytes:
    name = client.encode()
    return b"d" + _PREFIX.pack(shard, len(name)) + name


def _parse(key: bytes) -> tuple[str, int | None]:
    """(client, number) of a row's key; number None: the row of the client itself."""
    _, length = _PREFIX.unpack_from(key, 1)
    end = 1 + _PREFIX.size + length
    number: int | None = _NUMBER.unpack_from(key, end)[0] if len(key) > end else None
    return key[1 + _PREFIX.size : end].decode(), number
