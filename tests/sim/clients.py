"""Clients: one operation at a time, sent again under its request id when no answer comes, and the history of the answers."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim.host import Found, WriteRequest
from sim.linearizability import INFINITY, Kind, Operation
from sim.world import Violation

from leaf.replication.messages import RequestId

if TYPE_CHECKING:
    from sim.leaf_model import Leaf
    from sim.simulation import Simulation

NO_EFFECT = {"NOT_PRIMARY", "NOT_READY", "NO_LEASE", "TOO_FEW_IN_SYNC", "BUSY", "NO_REPLICA"}
"""Refusals after which this attempt surely did nothing; the others leave it open."""


class Call:
    """One operation of a client under way."""

    __slots__ = ("attempts", "has_doubt", "invoked", "is_over", "is_strong", "keys", "request", "shard")

    def __init__(self, shard: int, invoked: float) -> None:
        self.shard = shard
        self.invoked = invoked
        self.attempts = 0
        self.has_doubt = False  # Some attempt may still take effect.
        self.is_over = False
        self.keys: tuple[int, ...] | None = None
        self.is_strong = True
        self.request: WriteRequest | None = None


class Client:
    """A caller of the cluster, outside of its partitions: only requests and answers get lost."""

    def __init__(self, sim: "Simulation", name: str) -> None:
        self.sim = sim
        self.world = sim.world
        self.name = name
        self.numbers: dict[int, int] = {}
        self.newest: dict[int, int] = {}  # By shard: a committed seqno it knows.
        self.versions: dict[int, int] = {}  # By key: what it last saw there.
        self.values: dict[int, int | None] = {}
        self.pause_s = self.world.rng.choice((0.005, 0.02, 0.1))
        self.call: Call | None = None

    def begin(self) -> None:
        """Start the next operation."""
        if self.sim.is_stopping:
            return
        rng = self.world.rng
        shard = rng.randrange(self.sim.shards)
        key = shard * 100 + int(self.sim.keys * rng.random() ** 2)  # Some keys are hot.
        call = Call(shard, self.world.now)
        chance = rng.random()
        if chance < 0.45:
            call.keys = None if chance < 0.01 else (key,)
            call.is_strong = chance < 0.38
        else:
            call.request = self._write(shard, key, chance)
        self.call = call
        self._attempt(call)

    def give_up(self) -> None:
        """The run is over: what is under way has an unknown outcome."""
        if self.call is not None and not self.call.is_over:
            self._unknown(self.call)

    def _write(self, shard: int, key: int, chance: float) -> WriteRequest:
        number = self.numbers[shard] = self.numbers.get(shard, 0) + 1
        name = RequestId(self.name, number, self.newest.get(shard, 0))
        if chance > 0.994:
            return WriteRequest(name, ())
        version = self.versions.get(key, 0)
        if chance < 0.72:
            values: tuple[tuple[int, int | None], ...] = ((key, self.sim.new_value()),)
            if chance < 0.47:
                other = shard * 100 + self.world.rng.randrange(self.sim.keys)
                values += ((other, self.sim.new_value()),) if other != key else ()
            return WriteRequest(name, values)
        if chance < 0.88:
            return WriteRequest(name, ((key, self.sim.new_value()),), version)
        return WriteRequest(name, ((key, None),), version if chance < 0.92 and version else None)

    # Attempts

    def _attempt(self, call: Call) -> None:
        rng = self.world.rng
        call.attempts += 1
        attempt = call.attempts
        leaf = self._choose(call)
        if rng.random() >= self.sim.client_loss:
            self.world.at(self._delay(), leaf.post, None, self._arrive, leaf, call, attempt)
        self.world.at(rng.choice((0.1, 0.4, 1.0)), self._time_out, call, attempt)
        if call.request is not None:
            call.has_doubt = True

    def _delay(self) -> float:
        return 0.0003 + 0.002 * self.world.rng.random() ** 2

    def _choose(self, call: Call) -> "Leaf":
        rng = self.world.rng
        config = self.sim.coordinator.configs[call.shard]
        if rng.random() < (0.1 if call.request is not None else 0.25):
            return self.sim.leaves[rng.choice(self.sim.names)]
        if call.request is not None:
            return self.sim.leaves[config.primary]
        return self.sim.leaves[rng.choice(config.in_sync).leaf]

    def _arrive(self, leaf: "Leaf", call: Call, attempt: int) -> None:
        """On the leaf. Late copies of what is long over arrive too."""
        host = leaf.hosts.get(call.shard)

        def answer(kind: str, seqno: int, result: object) -> None:
            if self.world.rng.random() >= self.sim.client_loss:
                self.world.at(self._delay(), self._answered, call, attempt, kind, seqno, result)

        if host is None:
            answer("NO_REPLICA", 0, None)
        elif call.request is not None:
            host.write(call.request, answer)
        else:
            host.read(call.keys, call.is_strong, answer)

    def _time_out(self, call: Call, attempt: int) -> None:
        if call.is_over or attempt != call.attempts:
            return
        if self.world.now - call.invoked > self.sim.patience:
            self._unknown(call)
        else:
            self._attempt(call)

    def _answered(self, call: Call, attempt: int, kind: str, seqno: int, result: object) -> None:
        if call.is_over:
            self._check_late(call, kind, seqno, result)
        elif kind == "done":
            assert isinstance(result, tuple)
            self._written(call, seqno, result)
        elif kind == "read":
            assert isinstance(result, dict)
            self._read(call, seqno, result)
        elif attempt == call.attempts:
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

    def _written(self, call: Call, seqno: int, result: tuple[str, object]) -> None:
        request = call.request
        assert request is not None
        if not seqno:
            self._condition_failed(call, request, result)
        else:
            self.newest[call.shard] = max(self.newest.get(call.shard, 0), seqno)
            self.sim.acknowledged.append((call.shard, seqno, request.id))
            self._done(call, request, seqno)
            if self.world.rng.random() < self.sim.ghosts:
                # A copy that was stuck somewhere comes when all is over.
                delay = self.world.rng.random() ** 2 * 3.0
                leaf = self.sim.leaves[self.world.rng.choice(self.sim.names)]
                self.world.at(delay, leaf.post, None, self._arrive, leaf, call, -1)
            call.keys = (seqno,)  # What a late answer must say.
        self._finish(call)

    def _done(self, call: Call, request: WriteRequest, seqno: int) -> None:
        self.sim.counts["writes"] += 1
        if not request.values:
            for key in self.sim.keys_of(call.shard):
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

    def _read(self, call: Call, seqno: int, found: Found) -> None:
        self.newest[call.shard] = max(self.newest.get(call.shard, 0), seqno)
        if call.is_strong:
            for key in call.keys if call.keys is not None else self.sim.keys_of(call.shard):
                held = found.get(key)
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
            for key in self.sim.keys_of(call.shard):
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
        if kind == "done" and call.request is not None and seqno and call.keys is not None and call.keys != (seqno,):
            raise Violation(f"I12: {call.request} was answered with seqno {call.keys[0]} and now with {seqno} {result}")


def probe(sim: "Simulation", shard: int, answer: Callable[[str, int, object], None]) -> None:
    """One write at the primary, to see whether the shard takes any."""
    leaf = sim.leaves[sim.coordinator.configs[shard].primary]
    host = leaf.hosts.get(shard)
    if host is not None and leaf.is_up:
        number = sim.new_value()
        sim.history[shard * 100].append(Operation(Kind.PUT, sim.world.now, INFINITY, number, client="probe"))
        host.write(WriteRequest(RequestId("probe", number, 1 << 60), ((shard * 100, number),)), answer)
