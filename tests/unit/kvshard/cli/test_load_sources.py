"""Records out of files: good lines, every kind of bad line, and places to go on from."""

import io
import json

import pytest

from kvshard.cli import load_sources
from kvshard.cli.load_sources import Csv, JsonLines, Lines, Record, Reject, Source
from kvshard.errors import InvalidArgument


def json_lines(data: bytes, key_field: str = "id") -> JsonLines:
    return JsonLines(Lines(io.BytesIO(data)), key_field)


def csv(data: bytes, schema: dict[str, str] | None = None, delimiter: str = ",") -> Csv:
    return Csv(Lines(io.BytesIO(data)), "id", schema or {}, delimiter)


def everything(source: Source) -> tuple[list[Record], list[Reject]]:
    records, rejects = [], []
    while batch := source.next_batch(2, 1000):
        records += batch.records
        rejects += batch.rejects
    return records, rejects


def documents(source: Source) -> dict[str, object]:
    return {record.key.decode(): json.loads(record.value) for record in everything(source)[0]}


def test_json_lines() -> None:
    records, rejects = everything(json_lines(b'{"id": "a", "n": 1}\n\n  {"id":7}\r\n{"id":"c"}'))
    assert [(record.line, record.key, record.value) for record in records] == [
        (1, b"a", b'{"id": "a", "n": 1}'),
        (3, b"7", b'{"id":7}'),
        (4, b"c", b'{"id":"c"}'),
    ]
    assert not rejects


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{", "truncated"),
        (b'{"id":"x",}', "malformed"),
        (b"[1]", "Expected `object`"),
        (b'{"n":1}', "missing required field `id`"),
        (b'{"id":1.5}', "Expected `int | str`"),
        (b'{"id":null}', "got `null`"),
        (b'{"id":""}', "1 to 1,024 bytes"),
        (b'{"id":"%s"}' % (b"k" * 1025), "1 to 1,024 bytes"),
        (b'{"id":"\xff"}', "utf-8"),
        (b"\xff\xfe", "malformed"),
        (b'{"id":"a","x":' + b"[" * 100_000, "ecursion"),
    ],
)
def test_bad_json_lines(line: bytes, error: str) -> None:
    records, rejects = everything(json_lines(b'{"id":"a"}\n' + line + b'\n{"id":"b"}\n'))
    assert [record.key for record in records] == [b"a", b"b"]
    ((number, text, raw),) = [(reject.line, reject.error, reject.raw) for reject in rejects]
    assert number == 2
    assert error.lower() in text.lower()
    assert raw == (line + b"\n")[: load_sources.RAW_MAX_BYTES]


def test_a_line_without_end_is_passed_over_in_bounded_memory() -> None:
    long = b"x" * (load_sources.LINE_MAX_BYTES + 5_000_000)
    records, rejects = everything(json_lines(b'{"id":1}\n' + long + b'\n{"id":2}\n'))
    assert [(record.line, record.key) for record in records] == [(1, b"1"), (3, b"2")]
    assert (rejects[0].line, len(rejects[0].raw)) == (2, load_sources.RAW_MAX_BYTES)
    assert "longer than" in rejects[0].error


def test_a_value_over_the_limit_is_refused() -> None:
    records, rejects = everything(json_lines(b'{"id":1,"x":"%s"}\n' % (b"x" * (8 << 20))))
    assert not records
    assert "8,388,608" in rejects[0].error


def test_batches_end_at_their_limits_and_know_their_place() -> None:
    data = b"".join(b'{"id":%d}\n' % n for n in range(5))
    source = json_lines(data)
    batches = []
    while batch := source.next_batch(2, 1000):
        batches.append((len(batch.records), batch.offset, batch.line))
    assert batches == [(2, 18, 2), (2, 36, 4), (1, 45, 5)]
    source = json_lines(data)
    assert len(source.next_batch(100, 15).records) == 2
    again = json_lines(data)
    again.lines.move_to(36, 4)
    assert [(record.line, record.key) for record in again.next_batch(9, 999).records] == [(5, b"4")]


def test_a_key_field_of_any_name() -> None:
    assert documents(json_lines(b'{"the key":"a"}\n', "the key")) == {"a": {"the key": "a"}}


SCHEMA = {"id": "keyword", "year": "integer", "price": "float", "is_new": "boolean", "title": "text"}


def test_csv_by_the_types_of_the_schema() -> None:
    data = b'\xef\xbb\xbfid,year,price,is_new,title,extra\na,2013,1.5,Yes,"tail, latency",7\nb, 7 ,2,0,,\n'
    assert documents(csv(data, SCHEMA)) == {
        "a": {"id": "a", "year": 2013, "price": 1.5, "is_new": True, "title": "tail, latency", "extra": "7"},
        "b": {"id": "b", "year": 7, "price": 2.0, "is_new": False},
    }


def test_tab_separated_values() -> None:
    assert documents(csv(b"id\ttitle\na\tx,y\n", delimiter="\t")) == {"a": {"id": "a", "title": "x,y"}}


def test_csv_records_over_several_lines_keep_their_place() -> None:
    data = b'id,title\na,"one\ntwo"\n\nb,x\n'
    source = csv(data)
    first = source.next_batch(1, 1000)
    assert (first.records[0].line, first.line, first.records[0].raw) == (2, 3, b'a,"one\ntwo"\n')
    again = csv(data)
    again.lines.move_to(first.offset, first.line)
    assert [(record.line, record.key) for record in again.next_batch(9, 999).records] == [(5, b"b")]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"x", "1 columns where the header has 3"),
        (b"x,1,2,3", "4 columns where the header has 3"),
        (b"x,soon,1", "column year: 'soon' is not an integer"),
        (b"x,1.5,1", "column year: '1.5' is not an integer"),
        (b"x,1,much", "column price: 'much' is not a number"),
        (b"x,1,inf", "column price: 'inf' is not a number"),
        (b",1,1", "1 to 1,024 bytes"),
        (b'"x"y,1,1', "expected after"),
        (b"\xff,1,1", "not UTF-8"),
    ],
)
def test_bad_csv_lines(line: bytes, error: str) -> None:
    records, rejects = everything(csv(b"id,year,price\na,1,1\n" + line + b"\nb,1,1\n", SCHEMA))
    assert [record.key for record in records] == [b"a", b"b"]
    (reject,) = rejects
    assert (reject.line, reject.raw) == (3, line + b"\n")
    assert error in reject.error


def test_a_quote_that_never_ends_is_one_bad_record() -> None:
    records, rejects = everything(csv(b'id,title\na,x\nb,"y\nc,z\n'))
    assert [record.key for record in records] == [b"a"]
    assert (rejects[0].line, rejects[0].raw) == (3, b'b,"y\nc,z\n')


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "no header"),
        (b"key,title\n", "no column 'id'; columns are key, title"),
        (b"id,a,a\n", "twice"),
        (b'"id\n', "header line cannot be read"),
        (b"\xff\n", "header line cannot be read"),
    ],
)
def test_headers_that_will_not_do(data: bytes, error: str) -> None:
    with pytest.raises(InvalidArgument, match=error):
        csv(data)
