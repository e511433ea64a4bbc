"""One replica in a leaf: performs the actions of its machine, as `leaf/driver.py` does, on the virtual disk and network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.disk import CLEAR, Image, Install, Rows, digest_of, fold, rows_of, split_rows
from sim.splits import pending_split

from kvshard.clustermap import ShardConfig
from leaf.operations import Split
from leaf.replication import actions as act
from leaf.replication.events import CasAnswer, Conclude, Event, Propose, Read, Receive, SnapshotRows, Write
from leaf.replication.machine import ReadNow, ReplicationMachine, Role
from leaf.replication.messages import RequestId
from leaf.replication.reign import Reign

if TYPE_CHECKING:
    from sim.leaf_model import Leaf

ROWS_PER_CHUNK = 4
"""Small, so that a snapshot takes several chunks and faults fall between them."""

Found = dict[int, tuple[int, int] | None]


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """A write as a client sends it. expected: version that the first key must have (0: it must not exist); None: no condition.

    values: (key, value or None) pairs; empty: remove every key.
    """

    id: RequestId
    values: tuple[tuple[int, int | None], ...]
    expected: int | None = None


@dataclass(slots=True)
class WriteCall:
    """A write that waits for its answer. answer(kind, seqno, result)."""

    request: WriteRequest
    answer: Callable[[str, int, object], None]
    floor: int


@dataclass(slots=True)
class ReadCall:
    """A read that waits. keys None: all. floor: what it must show at least, see `Oracle.floor_of`."""

    keys: tuple[int, ...] | None
    is_strong: bool
    answer: Callable[[str, int, object], None]
    floor: int


class Host:
    """A machine with the state it applies to. `state` is what readers see; the disk follows behind.

    last_slot: the end of its range. departed: splits applied, by child: (seqno, first slot that left). proposals: splits that
    are being put into the log, by token. finish_at: when the end of a split may be asked for again. divided_at: since when the
    machine knows what it does of the child's data.
    """

    def __init__(self, leaf: "Leaf", shard: int, machine: ReplicationMachine, image: Image) -> None:
        self.leaf = leaf
        self.shard = shard
        self.machine = machine
        self.world = leaf.world
        self.oracle = leaf.sim.oracles[shard]
        self.image = image
        self.state = dict(image.state)
        self.applied = image.applied
        self.digest = digest_of(self.state)
        self.log_base = image.base_seqno
        self.log = list(image.entries)
        self.last_slot = image.last_slot
        self.departed = dict(image.departed)
        self.proposals: dict[int, Split] = {}
        self.finish_at = float("-inf")
        self.divided_at = float("-inf")
        self.is_dropped = False
        self.seen_committed = 0
        self.seen_epoch = 0
        self.seen_role: Role | None = None
        self.seen_reign: Reign | None = None
        self.is_dedup_due = True
        self.calls: dict[int, WriteCall | ReadCall] = {}
        self.snapshots: dict[int, Rows] = {}
        self.staged: dict[int, Rows] = {}
        self.boot = leaf.boot
        self.note_map()
        self.oracle.recovered(self)

    def __repr__(self) -> str:
        m = self.machine
        return (
            f"{m.me.leaf}/{self.shard} {m.role.name} epoch={m.epoch} committed={m.committed} last={m.last} durable={m.durable}"
        )

    def step(self, event: Event) -> None:
        """Give the machine an event, check what became of it, perform what it asks for."""
        if self.is_dropped:
            return
        self.world.note(self.leaf.id, self.shard, event)
        is_older = type(event) is Receive and event.message.epoch < self.machine.epoch
        marks = self.marks if is_older else None
        actions = self.machine.step(event, self.leaf.clock())
        if is_older:
            self.oracle.heard_older(self, event, marks)
        self.oracle.after_step(self, actions)
        for action in actions:
            HANDLERS[type(action)](self, action)
        self.oracle.after_actions(self)

    def note_map(self) -> None:
        """Tell the machine whether something has left that the map, as this leaf knows it, does not name yet."""
        self.machine.is_dividing = any(child not in self.leaf.seen for child in self.departed)

    @property
    def marks(self) -> tuple[object, ...]:
        """What no message of an older epoch may change."""
        machine = self.machine
        return machine.role, machine.epoch, machine.committed, machine.last, machine.durable

    # Calls of clients

    def write(self, request: WriteRequest, answer: Callable[[str, int, object], None]) -> int:
        """A client's write; returns its token."""
        token = self.leaf.new_token()
        keys = tuple(key for key, _ in request.values) or None
        self.calls[token] = WriteCall(request, answer, self.oracle.floor_of(keys))
        self.step(Write(token, request.id, 40))
        return token

    def read(self, keys: tuple[int, ...] | None, is_strong: bool, answer: Callable[[str, int, object], None]) -> int:
        """A client's read; returns its token."""
        call = ReadCall(keys, is_strong, answer, self.oracle.floor_of(keys) if is_strong else 0)
        token = self.leaf.new_token()
        if self.world.rng.random() < 0.5:
            now = self.machine.try_read(keys, is_strong, self.leaf.clock())
            self.world.note(self.leaf.id, self.shard, "try_read", keys, is_strong, now)
            if isinstance(now, ReadNow):
                self._serve(call, now.seqno, now.age_s)
                return token
            if now is not None:
                answer(now.name, 0, None)
                return token
        self.calls[token] = call
        self.step(Read(token, keys, is_strong))
        return token

    @property
    def divided_s(self) -> float | None:
        """How long the data of a split's child has been whole on the disk; None: it is not, or the map knows the child."""
        return None if self.machine.divided_off is None else self.leaf.clock() - self.divided_at

    def left_by(self, key: int) -> int | None:
        """Seqno of the split by which a key has left, 0 when it is not known any more; None: it is here."""
        if key <= self.last_slot:
            return None
        return min((seqno for seqno, at_slot in self.departed.values() if at_slot <= key), default=0)

    def _serve(self, call: ReadCall, seqno: int, age_s: float | None) -> None:
        left = [by for by in map(self.left_by, call.keys or ()) if by is not None]
        if left:
            call.answer("MOVED", min(left), None)
            return
        found = self.values_of(call.keys)
        self.oracle.read_served(self, call, seqno, age_s, found)
        call.answer("read", self.applied, found)

    def values_of(self, keys: tuple[int, ...] | None) -> Found:
        """(value, version) of keys as readers see them; None: all that are in its range."""
        if keys is None:
            keys = tuple(key for key in self.oracle.keys if key <= self.last_slot)
        return {key: self.state.get(key) for key in keys}

    # Actions

    def _send(self, action: act.Send) -> None:
        self.oracle.sending(self, action.message)
        leaf = self.leaf.sim.leaves.get(action.receiver.leaf)
        if leaf is not None and leaf is not self.leaf:
            me = self.machine.me
            self.leaf.sim.network.send(
                self.leaf.id, leaf.id, leaf.post, None, leaf.receive, self.shard, me, action.receiver, action.message
            )

    def _save_epoch(self, action: act.SaveEpoch) -> None:
        self.leaf.disk.put(self.shard, action.ticket, action)

    def _append(self, action: act.Append) -> None:
        self.oracle.appending(self, action.entries)
        self.log.extend(action.entries)
        self.leaf.disk.put(self.shard, action.ticket, action)

    def _truncate(self, action: act.Truncate) -> None:
        keep = action.after - self.log_base
        self.oracle.truncating(self, self.log[keep:])
        del self.log[keep:]
        self.leaf.disk.put(self.shard, action.ticket, action)

    def _install(self, action: act.InstallSnapshot) -> None:
        rows = tuple(row for index in sorted(self.staged) for row in self.staged[index])
        self.staged = {}
        self.state, self.last_slot = split_rows(rows)
        self.departed = {}
        self.note_map()
        self.applied = action.seqno
        self.digest = digest_of(self.state)
        self.log, self.log_base = [], action.seqno
        self.is_dedup_due = True
        self.oracle.installed(self, action)
        self.leaf.disk.put(self.shard, action.ticket, Install(action, rows))

    def _apply(self, action: act.Apply) -> None:
        self.oracle.applying(self, action.entries)
        for entry in action.entries:
            self.digest = fold(self.state, entry, self.digest)
            if isinstance(entry.payload, Split):
                self._divided(entry.seqno, entry.payload, action)
        self.applied = action.entries[-1].seqno
        self.oracle.applied(self)
        self.leaf.disk.put(self.shard, 0, action)

    def _divided(self, seqno: int, split: Split, action: act.Apply) -> None:
        self.last_slot = split.at_slot - 1
        self.departed[split.child] = (seqno, split.at_slot)
        self.note_map()
        self.oracle.divided(self, seqno, action.table or self.machine.dedup)

    def _trim(self, action: act.TrimLog) -> None:
        if action.through > self.log_base:
            del self.log[: action.through - self.log_base]
            self.log_base = action.through
        self.leaf.disk.put(self.shard, 0, action)

    def _evaluate(self, action: act.Evaluate) -> None:
        split = self.proposals.pop(action.token, None)
        if split is not None:
            self.step(Propose(action.token, None, split, None, 0, None))
            return
        call = self.calls[action.token]
        assert isinstance(call, WriteCall)
        refusal = self._refusal(call.request)
        if refusal is not None:
            del self.calls[action.token]
            call.answer(*refusal, None)
            return
        self.step(self._evaluated(action.token, call.request))

    def _refusal(self, request: WriteRequest) -> tuple[str, int] | None:
        """What leaves with a split in flight belongs to the child: a write behind it would be lost to it."""
        pending = pending_split(self.machine)
        if pending is not None and not request.values:
            return "NOT_READY", 0  # One entry of all keys at a time.
        for key, _ in request.values:
            by = self.left_by(key)
            if by is None and pending is not None and key >= pending[1].at_slot:
                by = pending[0]
            if by is not None:
                return "MOVED", by
        return None

    def _evaluated(self, token: int, request: WriteRequest) -> Event:
        if not request.values:
            return Propose(token, request.id, CLEAR, None, 20, ("clear", 0))
        key, value = request.values[0]
        held, depends_on = self.latest(key)
        version = held[1] if held else 0
        if request.expected is not None and request.expected != version:
            return Conclude(token, depends_on, ("conflict", held))
        if value is None and held is None:
            return Conclude(token, depends_on, ("absent", None))
        keys = tuple(key for key, _ in request.values)
        return Propose(token, request.id, request.values, keys, 40 * len(keys), ("done", keys))

    def latest(self, key: int) -> tuple[tuple[int, int] | None, int]:
        """(value, version) of a key with pending writes (None: it does not exist), and the seqno this rests on."""
        pending = self.machine.latest_write(key, by_name=pending_split(self.machine) is not None)
        if pending is None:
            held = self.state.get(key)
            return held, held[1] if held else 0
        (entry,) = self.machine.log.between(pending - 1, pending)
        value = None if entry.payload == CLEAR else dict(entry.payload)[key]  # type: ignore[call-overload]
        return (None if value is None else (value, pending)), pending

    def _answer(self, action: act.Answer) -> None:
        call = self.calls.pop(action.token, None)
        if call is not None:
            assert isinstance(call, WriteCall)
            left = self.left_out(call.request, action.seqno, action.result)
            if left is not None:
                call.answer("MOVED", left, None)
                return
            self.oracle.answering(self, call, action.seqno, action.result)
            call.answer("done", action.seqno, action.result)

    def left_out(self, request: WriteRequest, seqno: int, result: object) -> int | None:
        """By which split a key of a request has left that was done here without it; None: it was done whole.

        A write that went on as two bears one id in both shards: that the id is known here says nothing of the other keys.
        """
        assert isinstance(result, tuple)
        missing = [key for key, _ in request.values if key not in result[1]] if seqno else []
        if not missing:
            return None
        left = self.left_by(missing[0])
        self.oracle.require(left is not None, "I12", self, f"the id of {request} was used for {result}")
        return left

    def _refuse(self, action: act.Refuse) -> None:
        call = self.calls.pop(action.token, None)
        if call is not None:
            call.answer(action.reason.name, action.committed, None)

    def _serve_read(self, action: act.ServeRead) -> None:
        call = self.calls.pop(action.token, None)
        if call is not None:
            assert isinstance(call, ReadCall)
            self._serve(call, action.seqno, action.age_s)

    def _compare_and_set(self, action: act.CompareAndSet) -> None:
        self.oracle.asking(self, action)
        self.world.note(self.leaf.id, self.shard, "asks", action)
        self.leaf.sim.coordinator.compare_and_set(self.leaf.id, action.expected_epoch, action.config, self._cas_answered)

    def _cas_answered(self, answer: CasAnswer) -> None:
        self.leaf.post(self.boot, self.step, answer)

    def _read_config(self, _: act.ReadConfig) -> None:
        self.leaf.sim.coordinator.read(self.leaf.id, self.shard, self._config_read)

    def _config_read(self, config: ShardConfig, revision: int) -> None:
        self.leaf.post(self.boot, self.leaf.learn, config, revision)

    def _open_snapshot(self, action: act.OpenSnapshot) -> None:
        self.snapshots[action.snapshot] = rows_of(self.state, self.last_slot)

    def _read_snapshot(self, action: act.ReadSnapshot) -> None:
        delay = 0.001 + 0.01 * self.world.rng.random()
        self.world.at(delay, self.leaf.post, self.boot, self._rows_read, action)

    def _rows_read(self, action: act.ReadSnapshot) -> None:
        rows = self.snapshots.get(action.snapshot)
        if rows is not None:
            start = action.cursor or 0
            assert isinstance(start, int)
            end = start + ROWS_PER_CHUNK
            self.step(SnapshotRows(action.snapshot, rows[start:end], end if end < len(rows) else None))

    def _close_snapshot(self, action: act.CloseSnapshot) -> None:
        self.snapshots.pop(action.snapshot, None)

    def _stage_rows(self, action: act.StageRows) -> None:
        if action.index == 0:
            self.staged = {}
        assert isinstance(action.rows, tuple)
        self.staged[action.index] = action.rows


HANDLERS: dict[type, Callable[..., None]] = {
    act.Send: Host._send,
    act.SaveEpoch: Host._save_epoch,
    act.Append: Host._append,
    act.Truncate: Host._truncate,
    act.InstallSnapshot: Host._install,
    act.Apply: Host._apply,
    act.TrimLog: Host._trim,
    act.Evaluate: Host._evaluate,
    act.Answer: Host._answer,
    act.Refuse: Host._refuse,
    act.ServeRead: Host._serve_read,
    act.CompareAndSet: Host._compare_and_set,
    act.ReadConfig: Host._read_config,
    act.OpenSnapshot: Host._open_snapshot,
    act.ReadSnapshot: Host._read_snapshot,
    act.CloseSnapshot: Host._close_snapshot,
    act.StageRows: Host._stage_rows,
}
