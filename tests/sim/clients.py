"""Clients: one operation at a time, sent again under its request id when no answer comes, and the history of the answers.

A client finds the shard of a key by a map that may be old. Told that the key has moved it asks the shard that has it now, under
the same request id; what it knew of the committed seqnos of the shard before counts there up to the split and no further. A
write whose keys are in different shards by then goes on as two, still under the one id.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sim.host import Found, WriteRequest
from sim.linearizability import INFINITY, Kind, Operation
from sim.splits import KEYS, SHARDS, SLOTS
from sim.world import Violation

from leaf.replication.messages import RequestId

if TYPE_CHECKING:
    from sim.leaf_model import Leaf
    from sim.simulation import Simulation

NO_EFFECT = {"NOT_PRIMARY", "NOT_READY", "NO_LEASE", "TOO_FEW_IN_SYNC", "BUSY", "NO_REPLICA", "MOVED"}
"""Refusals after which this attempt surely did nothing; the others leave it open."""

OLD_MAP = 0.1
"""Probability that an attempt goes by the map before."""


@dataclass(slots=True)
class Call:
    """One operation of a client under way.

    keys: of a read, None: all of the shard. request: of a write. shard: where it was sent first; `since` of the request speaks
    of that one. moved_at: by which of its entries keys have left it, as far as the client was told. has_doubt: some attempt may
    still take effect. seqno: what it was answered.
    """

    shard: int
    invoked: float
    keys: tuple[int, ...] | None = None
    request: WriteRequest | None = None
    is_strong: bool = True
    moved_at: int | None = None
    attempts: int = 0
    has_doubt: bool = False
    is_over: bool = False
    seqno: int = 0

    @property
    def key(self) -> int | None:
        """The first of its keys; None: it concerns the shard, not keys."""
        if self.request is not None:
            return self.request.values[0][0] if self.request.values else None
        return self.keys[0] if self.keys else None

    def request_for(self, shard: int) -> WriteRequest | None:
        """The request as that shard is to get it."""
        request = self.request
        if request is None or shard == self.shard:
            return request
        # What was committed after the split bears the same numbers in both shards, and they mean different entries.
        return replace(request, id=request.id._replace(since=since_elsewhere(request.id.since, self.moved_at)))


def since_elsewhere(since: int, moved_at: int | None) -> int:
    """What of a `since` holds in a shard that was split off from the one of which it speaks."""
    return min(since, moved_at or 0)


class Client:
    """A caller of the cluster, outside of its partitions: only requests and answers get lost."""

    def __init__(self, sim: "Simulation", name: str) -> None:
        self.sim = sim
        self.world = sim.world
        self.name = name
        self.number = 0
        self.newest: dict[int, int] = {}  # By shard: a committed seqno it knows.
        self.versions: dict[int, int] = {}  # By key: what it last saw there.
        self.values: dict[int, int | None] = {}
        self.pause_s = self.world.rng.choice((0.005, 0.02, 0.1))
        self.call: Call | None = None
        self.rest: list[Call] = []  # Of a write that goes on as several.

    def begin(self) -> None:
        """Start the next operation."""
        if self.rest:
            self.call = self.rest.pop()
            self._attempt(self.call)
            return
        if self.sim.is_stopping:
            return
        rng = self.world.rng
        group = rng.randrange(SHARDS)
        key = self._key(group, rng.random() ** 2)  # Some keys are hot.
        call = Call(self._shard_of(key), self.world.now)
        chance = rng.random()
        if chance < 0.45:
            call.keys = None if chance < 0.01 else (key,)
            call.is_strong = chance < 0.38
        else:
            call.request = self._write(call.shard, key, self._key(group, rng.random()), chance)
        self.call = call
        self._attempt(call)

    def _key(self, group: int, chance: float) -> int:
        return group * SLOTS + KEYS[int(len(KEYS) * chance)]

    def _shard_of(self, key: int) -> int:
        """By its map."""
        shard = self.sim.shard_of(key)
        return self.sim.parents.get(shard, shard) if self.world.rng.random() < OLD_MAP else shard

    def give_up(self) -> None:
        """The run is over: what is under way has an unknown outcome."""
        if self.call is not None and not self.call.is_over:
            self._unknown(self.call)
        for call in self.rest:
            self._unknown(call)

    def _write(self, shard: int, key: int, other: int, chance: float) -> WriteRequest:
        self.number += 1
        name = RequestId(self.name, self.number, self.newest.get(shard, 0))
        if chance > 0.994:
            return WriteRequest(name, ())
        version = self.versions.get(key, 0)
        if chance < 0.72:
            values: tuple[tuple[int, int | None], ...] = ((key, self.sim.new_value()),)
            if chance < 0.47:
                values += ((other, self.sim.new_value()),) if other != key else ()
            return WriteRequest(name, values)
        if chance < 0.88:
            return WriteRequest(name, ((key, self.sim.new_value()),), version)
        return WriteRequest(name, ((key, None),), version if chance < 0.92 and version else None)

    # Attempts

    def _attempt(self, call: Call) -> None:
        if self._goes_on_as_several(call):
            return
        rng = self.world.rng
        call.attempts += 1
        attempt = call.attempts
        shard = call.shard if call.key is None or attempt == 1 else self._shard_of(call.key)
        leaf = self._choose(shard, call.request is not None)
        if rng.random() >= self.sim.client_loss:
            self.world.at(self._delay(), leaf.post, None, self._arrive, leaf, call, attempt, shard, call.request_for(shard))
        self.world.at(rng.choice((0.1, 0.4, 1.0)), self._time_out, call, attempt)
        if call.request is not None:
            call.has_doubt = True

    def _goes_on_as_several(self, call: Call) -> bool:
        """Part a write by the shards that its keys are in now."""
        request = call.request
        if request is None or len(request.values) < 2:
            return False
        by_shard: dict[int, list[tuple[int, int | None]]] = {}
        for key, value in request.values:
            by_shard.setdefault(self.sim.shard_of(key), []).append((key, value))
        if len(by_shard) < 2:
            return False
        call.is_over = True
        self.sim.counts["parted"] += 1
        self.rest = [
            replace(call, request=replace(request, values=tuple(values)), attempts=max(call.attempts, 1), is_over=False)
            for values in by_shard.values()
        ]
        self.begin()
        return True

    def _delay(self) -> float:
        return 0.0003 + 0.002 * self.world.rng.random() ** 2

    def _choose(self, shard: int, is_write: bool) -> "Leaf":
        rng = self.world.rng
        config = self.sim.coordinator.configs[shard]
        if rng.random() < (0.1 if is_write else 0.25):
            return self.sim.leaves[rng.choice(self.sim.names)]
        if is_write:
            return self.sim.leaves[config.primary]
        return self.sim.leaves[rng.choice(config.in_sync).leaf]

    def _arrive(self, leaf: "Leaf", call: Call, attempt: int, shard: int, request: WriteRequest | None) -> None:
        """On the leaf. Late copies of what is long over arrive too."""
        host = leaf.hosts.get(shard)

        def answer(kind: str, seqno: int, result: object) -> None:
            if self.world.rng.random() >= self.sim.client_loss:
                self.world.at(self._delay(), self._answered, call, attempt, shard, kind, seqno, result)

        if host is None:
            answer("NO_REPLICA", 0, None)
        elif request is not None:
            host.write(request, answer)
        else:
            host.read(call.keys, call.is_strong, answer)

    def _time_out(self, call: Call, attempt: int) -> None:
        if call.is_over or attempt != call.attempts:
            return
        if self.world.now - call.invoked > self.sim.patience:
            self._unknown(call)
        else:
            self._attempt(call)

    def _answered(self, call: Call, attempt: int, shard: int, kind: str, seqno: int, result: object) -> None:
        if call.is_over:
            self._check_late(call, kind, seqno, result)
        elif kind == "done":
            assert isinstance(result, tuple)
            self._written(call, shard, seqno, result)
        elif kind == "read":
            assert isinstance(result, dict)
            self._read(call, shard, seqno, result)
        elif attempt == call.attempts:
            if kind == "MOVED":
                self.sim.counts["moved"] += 1
            if kind == "MOVED" and shard == call.shard:
                call.moved_at = seqno if call.moved_at is None else min(call.moved_at, seqno)
            if call.attempts == 1 and kind in NO_EFFECT:
                call.has_doubt = False
            is_hopeless = kind == "EXPIRED" or (kind == "ABANDONED" and self.world.rng.random() < 0.2)
            if is_hopeless or self.world.now - call.invoked > self.sim.patience:
                self._unknown(call)
            else:
                self.world.at(0.02 + 0.1 * self.world.rng.random(), self._again, call, attempt)

    def _again(self, call: Call, attempt: int) -> None:
        if not call.is_over and attempt == call.attempts:
            self._attempt(call)

    # Outcomes

    def _finish(self, call: Call) -> None:
        call.is_over = True
        self.world.at(self.world.rng.expovariate(1.0) * self.pause_s, self.begin)

    def _record(self, call: Call, key: int, kind: Kind, **more: object) -> None:
        operation = Operation(kind, call.invoked, more.pop("returned", self.world.now), client=self.name, **more)  # type: ignore[arg-type]
        self.sim.history[key].append(operation)

    def _written(self, call: Call, shard: int, seqno: int, result: tuple[str, object]) -> None:
        request = call.request
        assert request is not None
        if not seqno:
            self._condition_failed(call, request, result)
        else:
            self.newest[shard] = max(self.newest.get(shard, 0), seqno)
            self.sim.acknowledged.append((shard, seqno, request.id))
            self._done(call, shard, request, seqno)
            if self.world.rng.random() < self.sim.ghosts:
                # A copy that was stuck somewhere comes when all is over.
                delay = self.world.rng.random() ** 2 * 3.0
                leaf = self.sim.leaves[self.world.rng.choice(self.sim.names)]
                self.world.at(delay, leaf.post, None, self._arrive, leaf, call, -1, shard, call.request_for(shard))
            call.seqno = seqno  # What a late answer must say.
        self._finish(call)

    def _done(self, call: Call, shard: int, request: WriteRequest, seqno: int) -> None:
        self.sim.counts["writes"] += 1
        if not request.values:
            for key in self.sim.oracles[shard].keys_at(seqno):
                self._record(call, key, Kind.DELETE)
        elif request.expected is not None:
            ((key, value),) = request.values
            expected = self.values.get(key) if request.expected else None
            self._record(call, key, Kind.CAS, value=value, expected=expected)
            self._saw(key, (value, seqno))
        else:
            for key, value in request.values:
                self._record(call, key, Kind.DELETE if value is None else Kind.PUT, value=value)
                self._saw(key, None if value is None else (value, seqno))

    def _condition_failed(self, call: Call, request: WriteRequest, result: tuple[str, object]) -> None:
        self.sim.counts["conditions failed"] += 1
        held = result[1]
        assert held is None or isinstance(held, tuple)
        key = request.values[0][0]
        self._record(call, key, Kind.GET, observed=held[0] if held else None)
        if call.attempts > 1 and not request.expected:
            # An earlier attempt may be on its way and find the condition met: absence comes back, a version never does.
            self._in_doubt(call, request)
        self._saw(key, held)

    def _saw(self, key: int, held: tuple[int | None, int] | None) -> None:
        self.values[key] = held[0] if held else None
        self.versions[key] = held[1] if held else 0

    def _read(self, call: Call, shard: int, seqno: int, found: Found) -> None:
        self.newest[shard] = max(self.newest.get(shard, 0), seqno)
        if call.is_strong:
            for key, held in found.items():
                self._record(call, key, Kind.GET, observed=held[0] if held else None)
                self._saw(key, held)
            self.sim.counts["strong reads"] += 1
        else:
            self.sim.counts["stale reads"] += 1
        self._finish(call)

    def _unknown(self, call: Call) -> None:
        self.sim.counts["unknown"] += 1
        if call.request is not None and call.has_doubt:
            self._in_doubt(call, call.request)
        self._finish(call)

    def _in_doubt(self, call: Call, request: WriteRequest) -> None:
        if not request.values:
            for key in self.sim.oracles[call.shard].keys:
                self._record(call, key, Kind.DELETE, returned=INFINITY)
        for key, value in request.values:
            if request.expected is not None:
                expected = self.values.get(key) if request.expected else None
                self._record(call, key, Kind.CAS, returned=INFINITY, value=value, expected=expected, has_applied=None)
            elif value is None:
                self._record(call, key, Kind.DELETE, returned=INFINITY)
            else:
                self._record(call, key, Kind.PUT, returned=INFINITY, value=value)

    def _check_late(self, call: Call, kind: str, seqno: int, result: object) -> None:
        if kind == "done" and call.request is not None and seqno and call.seqno and call.seqno != seqno:
            raise Violation(f"I12: {call.request} was answered with seqno {call.seqno} and now with {seqno} {result}")


def probe(sim: "Simulation", shard: int, answer: Callable[[str, int, object], None]) -> None:
    """One write at the primary, to see whether the shard takes any."""
    config = sim.coordinator.configs[shard]
    leaf = sim.leaves[config.primary]
    host = leaf.hosts.get(shard)
    if host is not None and leaf.is_up:
        number, key = sim.new_value(), config.first_slot
        sim.history[key].append(Operation(Kind.PUT, sim.world.now, INFINITY, number, client="probe"))
        host.write(WriteRequest(RequestId("probe", number, 1 << 60), ((key, number),)), answer)
