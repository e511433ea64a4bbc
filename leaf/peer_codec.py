"""Replication messages between leaves as bytes: a msgpack array of arrays.

    shard, sender's incarnation, receiver's incarnation, kind, what belongs to the kind

Entries travel as the very rows that the logs hold. A field may be added at an array's end; a kind that is not known is passed
over, so that leaves of two versions understand each other.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from kvshard import clustermap_text
from kvshard.clustermap import Replica, ShardConfig
from kvshard.errors import KvShardError
from leaf.replication.messages import (
    Beacon,
    BeaconAck,
    Commit,
    DedupRecord,
    Echo,
    Entry,
    Join,
    Message,
    Outdated,
    Prepare,
    PrepareAck,
    PrepareNack,
    SnapshotAck,
    SnapshotChunk,
)

_KINDS: Final = (Beacon, BeaconAck, Prepare, PrepareAck, PrepareNack, Commit, SnapshotChunk, SnapshotAck, Outdated, Join)
_NUMBER_OF: Final = {kind: number for number, kind in enumerate(_KINDS, 1)}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode

EncodeEntry = Callable[[Entry], bytes]
DecodeEntry = Callable[[bytes], Entry]


class Envelope(NamedTuple):
    """A message with its shard and the replicas at both ends."""

    shard: int
    sender: Replica
    receiver: Replica
    message: Message


def encode(envelopes: Iterable[Envelope], encode_entry: EncodeEntry) -> bytes:
    """Messages as one payload. The leaves are not in it: a stream has one at each end."""
    return _encode(
        [
            [shard, sender.incarnation, receiver.incarnation, _NUMBER_OF[type(message)], *_fields(message, encode_entry)]
            for shard, sender, receiver, message in envelopes
        ]
    )


def decode(payload: bytes, sender: str, receiver: str, decode_entry: DecodeEntry) -> Iterator[Envelope]:
    """The messages of a payload, those of unknown kinds left out. Raises ValueError when it is damaged."""
    try:
        for shard, sender_incarnation, receiver_incarnation, kind, *fields in _decode(payload):
            if 1 <= kind <= len(_KINDS):
                message = _message(_KINDS[kind - 1], fields, decode_entry)
                yield Envelope(shard, Replica(sender, sender_incarnation), Replica(receiver, receiver_incarnation), message)
    except (msgspec.MsgspecError, TypeError, AttributeError, LookupError, KvShardError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _fields(message: Message, encode_entry: EncodeEntry) -> list[object]:
    match message:
        case PrepareAck(epoch, acked):
            return [epoch, acked]
        case Commit(epoch, committed):
            return [epoch, committed]
        case Prepare(epoch, prev_epoch, prev_seqno, entries, committed):
            return [epoch, prev_epoch, prev_seqno, [encode_entry(entry) for entry in entries], committed]
        case BeaconAck(epoch, sent_at, clock, acked, is_stopping, ready_for, divided_off, is_full):
            return [epoch, sent_at, clock, acked, is_stopping, ready_for, divided_off, is_full]
        case Beacon(epoch, sent_at, committed, echo, grants_lease, config):
            data = clustermap_text.shard_data(config) if config is not None else None
            return [epoch, sent_at, committed, echo, grants_lease, data]
        case PrepareNack(epoch, prev_seqno, hint, needs_snapshot):
            return [epoch, prev_seqno, hint, needs_snapshot]
        case SnapshotChunk():
            return [
                message.epoch,
                message.snapshot,
                message.index,
                message.seqno,
                message.seqno_epoch,
                message.rows,
                message.is_last,
                message.dedup,
                message.forgotten_through,
            ]
        case SnapshotAck(epoch, snapshot, index):
            return [epoch, snapshot, index]
        case Outdated(epoch) | Join(epoch):
            return [epoch]


def _message(kind: type[Message], fields: list[Any], decode_entry: DecodeEntry) -> Message:
    if kind is Prepare:
        epoch, prev_epoch, prev_seqno, rows, committed, *_ = fields
        return Prepare(epoch, prev_epoch, prev_seqno, tuple(map(decode_entry, rows)), committed)
    if kind is BeaconAck:
        epoch, sent_at, clock, acked, *more = fields
        is_stopping, ready_for, divided_off, is_full = [*more, *(False, None, None, False)[len(more) :]][:4]
        return BeaconAck(epoch, sent_at, Echo(*clock), acked, is_stopping, ready_for, divided_off, is_full)
    if kind is Beacon:
        epoch, sent_at, committed, echo, grants_lease, data, *_ = fields
        return Beacon(epoch, sent_at, committed, Echo(*echo) if echo else None, grants_lease, _config(data))
    if kind is SnapshotChunk:
        epoch, snapshot, index, seqno, seqno_epoch, rows, is_last, dedup, forgotten, *_ = fields
        records = tuple(_dedup_record(record) for record in dedup)
        pairs = [(key, value) for key, value in rows]
        return SnapshotChunk(epoch, snapshot, index, seqno, seqno_epoch, pairs, is_last, records, forgotten)
    return kind(*fields)


def _config(data: Any) -> ShardConfig | None:
    return clustermap_text.shard_of(data) if data is not None else None


def _dedup_record(fields: list[Any]) -> DedupRecord:
    client, born, floor, last_seqno, results = fields
    return DedupRecord(client, born, floor, last_seqno, tuple((number, seqno, result) for number, seqno, result in results))
