"""Leaves that keep their shards in dictionaries, over FakeLeafClient: enough to route, merge and page against."""

import json
import sys
from bisect import bisect_right
from itertools import accumulate
from math import inf, nextafter

from fakes.leaf_client import ANY_LEAF, FakeLeafClient

from kvshard import hashing
from kvshard.errors import ErrorRecord, NotReady, ResourceExhausted, ShardMoved, VersionConflict, record_of
from kvshard.model import (
    LeafStatusReply,
    LeafStatusRequest,
    ShardHit,
    ShardRead,
    ShardReadReply,
    ShardScan,
    ShardScanReply,
    ShardSearch,
    ShardSearchReply,
    ShardTerms,
    ShardTermsReply,
    ShardWrite,
    ShardWriteReply,
    TermStatistics,
    changed,
)
from kvshard.sorting import field_keys, parse_sort, place_of


class MemoryLeaves:
    """`client` is the LeafClient. Every leaf holds every shard it is asked for, so all are replicas of each other; search
    matches documents by one word. A write that comes again under its request id gets its first reply (`repeated` counts), also
    from the child of a split.
    """

    def __init__(self) -> None:
        self.shards: dict[tuple[int, int], dict[bytes, tuple[bytes, int]]] = {}
        self.seqno = 0
        self.done: dict[tuple[int, str, int], ShardWriteReply] = {}
        self.came: dict[tuple[int, str, int], list[int]] = {}
        self.cuts: dict[int, list[int]] = {}
        self.repeated = 0
        self.client = FakeLeafClient()
        self.serve(ANY_LEAF)

    def serve(self, leaf: str) -> None:
        """Answer in the name of this leaf (again)."""
        self.client.on(leaf, ShardRead, self._read).on(leaf, ShardWrite, self._write).on(leaf, ShardScan, self._scan)
        self.client.on(leaf, ShardSearch, self._search).on(leaf, LeafStatusRequest, self._status)
        self.client.on(leaf, ShardTerms, self._terms)

    def fail(self, leaf: str, step: object) -> None:
        """Give every request to this leaf the same step (an error, a Hang)."""
        for kind in (ShardRead, ShardWrite, ShardScan, ShardSearch, ShardTerms, LeafStatusRequest):
            self.client.on(leaf, kind, step)

    def split(self, shard: int, child: int, at_slot: int) -> None:
        """From now on the slots from at_slot on are the child's."""
        for (each, collection_id), held in list(self.shards.items()):
            if each == shard:
                moved = {key: item for key, item in held.items() if hashing.slot(key, 0) >= at_slot}
                self.shards[child, collection_id] = moved
                self.shards[shard, collection_id] = {key: item for key, item in held.items() if key not in moved}
        for table in (self.done, self.came):
            table |= {(child, *id): value for (each, *id), value in table.items() if each == shard}
        self.cuts.setdefault(shard, []).append(at_slot)

    def _moved(self, request: ShardRead | ShardWrite) -> dict[int, ErrorRecord]:
        end = min(self.cuts.get(request.shard, [1 << 16]))
        record = record_of(ShardMoved("moved"))
        return {index: record for index, key in enumerate(request.keys) if hashing.slot(key, 0) >= end}

    def _check_cuts(self, request: ShardScan | ShardSearch | ShardTerms) -> None:
        cuts = len(self.cuts.get(request.shard, ()))
        if request.cuts is not None and request.cuts != cuts:
            raise ShardMoved("moved") if request.cuts < cuts else NotReady("not yet")

    def _keys(self, request: ShardRead | ShardWrite | ShardScan | ShardSearch | ShardTerms) -> dict[bytes, tuple[bytes, int]]:
        return self.shards.setdefault((request.shard, request.collection_id), {})

    def _read(self, request: ShardRead) -> ShardReadReply:
        held = self._keys(request)
        found = [held.get(key) for key in request.keys]
        errors, room = self._moved(request), request.max_bytes or sys.maxsize
        for index, item in enumerate(found):
            size = len(item[0]) if item is not None else 0
            if size > room:
                found[index], errors[index] = None, record_of(ResourceExhausted("too much for one reply"))
            else:
                room -= size
        return ShardReadReply(
            errors=errors,
            values=[None if item is None else item[0] for item in found],
            versions=[0 if item is None else item[1] for item in found],
            documents=len(held),
            seqno=self.seqno,
        )

    def _write(self, request: ShardWrite) -> ShardWriteReply:
        id = (request.shard, request.client, request.number)
        positions = request.positions or list(range(len(request.keys)))
        if request.client and id in self.done:
            self.repeated += 1
            return _part(self.came[id], self.done[id], positions, self._moved(request))
        reply = self._apply(request)
        if len(reply.errors) < len(request.keys):
            self.came[id], self.done[id] = positions, reply
        return reply

    def _apply(self, request: ShardWrite) -> ShardWriteReply:
        held = self._keys(request)
        reply = ShardWriteReply([], [], self._moved(request))
        for index, (key, value) in enumerate(zip(request.keys, request.values, strict=True)):
            present = held.get(key)
            if index in reply.errors:
                reply.existed.append(False)
                reply.versions.append(0)
                continue
            reply.existed.append(present is not None)
            condition = request.conditions[index] if request.conditions else None
            if condition is not None and condition != (present[1] if present else 0):
                reply.errors[index] = record_of(VersionConflict(f"not version {condition}"))
                reply.versions.append(0)
                continue
            self.seqno += 1
            if value is None:
                held.pop(key, None)
            else:
                held[key] = (value, self.seqno)
            reply.versions.append(self.seqno)
        return changed(reply, seqno=self.seqno)

    def _scan(self, request: ShardScan) -> ShardScanReply:
        self._check_cuts(request)
        held = self._keys(request)
        inside = sorted(key for key in held if key >= request.start and (request.end is None or key < request.end))
        keys = inside[: request.limit]
        sizes = list(accumulate(len(key) + (0 if request.keys_only else len(held[key][0])) for key in keys))
        if request.max_bytes and sizes and sizes[-1] > request.max_bytes:
            keys = keys[: max(1, bisect_right(sizes, request.max_bytes))]
        has_more = len(inside) > len(keys)
        return ShardScanReply(
            keys=keys,
            values=[] if request.keys_only else [held[key][0] for key in keys],
            versions=[held[key][1] for key in keys],
            expires_at_ms=[],
            has_more=has_more,
            resume=keys[-1] + b"\0" if has_more else b"",
            documents=len(held),
            seqno=self.seqno,
        )

    def _search(self, request: ShardSearch) -> ShardSearchReply:
        self._check_cuts(request)
        held = self._keys(request)
        word = request.query.strip()
        matches = []
        for key, (value, version) in held.items():
            document = json.loads(value)
            count = document.get("title", "").split().count(word)
            if count or word in ("", "*"):
                matches.append((float(count), key, value, version, document))
        sorts = parse_sort(request.sort)
        place = place_of(sorts)
        hits = [
            ShardHit(
                key,
                score if any(each.name == "_score" for each in sorts) else 0.0,
                b"" if request.keys_only else value,
                version,
                [document.get(each.name) for each in field_keys(sorts)],
            )
            for score, key, value, version, document in matches
        ]
        hits.sort(key=lambda hit: place(hit.sort_values, hit.score, hit.key))
        if request.after is not None:
            begin = place(request.after.values, request.after.score, request.after.key)
            hits = [hit for hit in hits if place(hit.sort_values, hit.score, hit.key) > begin]
        facets: dict[str, dict[str, int]] = {name: {} for name in request.facets}
        for name, counts in facets.items():
            for *_, document in matches:
                if name in document:
                    counts[document[name]] = counts.get(document[name], 0) + 1
        return ShardSearchReply(
            hits=hits[: request.limit],
            total=len(matches),
            documents=len(held),
            facets=facets,
            facet_errors=dict.fromkeys(facets, 0),
            has_more=len(hits) > request.limit,
            complete_to=nextafter(hits[request.limit].score, inf) if request.together and len(hits) > request.limit else None,
            statistics=self._statistics(request, {word}) if request.statistics is not None else None,
        )

    def _terms(self, request: ShardTerms) -> ShardTermsReply:
        """Each text is one term, and of the title only."""
        self._check_cuts(request)
        texts = [[("title", text)] if name == "title" else [] for name, text, _ in request.texts]
        words = {text for name, text, _ in request.texts if name == "title"}
        return ShardTermsReply(self._statistics(request, words | {*request.terms.get("title", [])}), texts)

    def _statistics(self, request: ShardSearch | ShardTerms, words: set[str]) -> TermStatistics:
        titles = [json.loads(value).get("title", "").split() for value, _ in self._keys(request).values()]
        words -= {"", "*"}
        if not words:
            return TermStatistics(len(titles), generation=self.seqno)
        counts = {word: sum(word in title for title in titles) for word in words}
        return TermStatistics(len(titles), {"title": sum(map(len, titles))}, {"title": counts}, self.seqno)

    def _status(self, request: LeafStatusRequest) -> LeafStatusReply:
        return LeafStatusReply("leaf", [], 1, 2.0, 3, 4, "0.1.0")

    def __repr__(self) -> str:
        return f"MemoryLeaves({ {place: len(keys) for place, keys in self.shards.items()} })"


def _part(came: list[int], reply: ShardWriteReply, positions: list[int], moved: dict[int, ErrorRecord]) -> ShardWriteReply:
    """What a reply to keys at some positions says of others."""
    part = ShardWriteReply([], [], {}, reply.seqno)
    for index, position in enumerate(positions):
        at = came.index(position) if position in came else None
        part.versions.append(0 if at is None else reply.versions[at])
        part.existed.append(False if at is None else reply.existed[at])
        if at is None:
            part.errors[index] = moved[index]
        elif at in reply.errors:
            part.errors[index] = reply.errors[at]
    return part
