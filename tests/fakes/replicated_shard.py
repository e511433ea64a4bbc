"""One shard's machines, connected by a network that loses nothing unless it is told to, with disks and clocks held by hand."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvshard.clustermap import Replica, ShardConfig
from leaf.replication import actions as act
from leaf.replication import events as ev
from leaf.replication.dedup import DedupTable
from leaf.replication.machine import Recovered, ReplicationMachine, Role
from leaf.replication.messages import Entry, RequestId
from leaf.replication.oplog import ReplicatedLog, Retention
from leaf.replication.timings import Timings

TIMINGS = Timings.of(1.0)


@dataclass
class Node:
    """One replica's shell. log, applied, dedup: what its disk holds. is_disk_held: nothing becomes durable."""

    machine: ReplicationMachine
    state: dict[str, tuple[str, int]] = field(default_factory=dict)
    is_up: bool = True
    is_disk_held: bool = False
    ticket: int = 0
    log: dict[int, Entry] = field(default_factory=dict)
    saved_epoch: int = 0
    views: dict[int, dict[str, tuple[str, int]]] = field(default_factory=dict)
    staged: dict[str, tuple[str, int]] = field(default_factory=dict)


class ReplicatedShard:
    """Machines of one shard by leaf. `answers` and `reads` are what callers were told, by token."""

    def __init__(
        self, leaves: str = "abc", *, min_in_sync: int = 2, retention: Retention | None = None, desired: str = ""
    ) -> None:
        self.now = 100.0
        self.min_in_sync = min_in_sync
        self.retention = retention or Retention()
        members = tuple(Replica(leaf, f"{leaf}1") for leaf in leaves)
        self.stored = ShardConfig(0, 0, 9, 1, leaves[0], members, (), tuple(desired or leaves))
        self.nodes: dict[str, Node] = {}
        self.wire: deque[tuple[Replica, act.Send]] = deque()
        self.is_cut: Callable[[str, str], bool] = lambda sender, receiver: False
        self.cas: list[tuple[str, act.CompareAndSet]] = []
        self.is_coordinator_up = True
        self.answers: dict[int, object] = {}
        self.reads: dict[int, object] = {}
        self.values: dict[int, tuple[str, str]] = {}
        self.boots = 0
        self._requests: dict[int, RequestId] = {}
        self._reading: dict[int, tuple[str, ...] | None] = {}
        self.sent: list[tuple[str, act.Send]] = []
        for member in members:
            self.boot(member, Node(self._machine(member, Recovered(0, ReplicatedLog(0, 0), 0, DedupTable()))))
        self.run()

    def _machine(self, me: Replica, recovered: Recovered) -> ReplicationMachine:
        self.boots += 1
        return ReplicationMachine(
            0,
            me,
            TIMINGS,
            boot=self.boots,
            min_in_sync=self.min_in_sync,
            recovered=recovered,
            now=self.now,
            retention=self.retention,
        )

    def boot(self, me: Replica, node: Node) -> None:
        """A replica's process starts and looks at the coordinator."""
        self.nodes[me.leaf] = node
        self.step(me.leaf, ev.ConfigSeen(self.stored))

    def restart(self, leaf: str) -> None:
        """A crash that loses nothing durable, and a start on what the disk holds."""
        old = self.nodes[leaf]
        log = ReplicatedLog(0, 0, [old.log[seqno] for seqno in sorted(old.log)])
        dedup = DedupTable()
        applied = old.machine.applied
        for seqno in range(1, applied + 1):
            if old.log[seqno].request is not None:
                dedup.record(old.log[seqno].request, seqno, old.log[seqno].result)
        recovered = Recovered(old.saved_epoch, log, applied, dedup)
        fresh = Node(self._machine(old.machine.me, recovered), dict(old.state), log=dict(old.log), saved_epoch=old.saved_epoch)
        self.boot(old.machine.me, fresh)

    def machine(self, leaf: str) -> ReplicationMachine:
        return self.nodes[leaf].machine

    @property
    def primary(self) -> str:
        return next(leaf for leaf, node in self.nodes.items() if node.is_up and node.machine.role is Role.PRIMARY)

    # -- what happens ---------------------------------------------------------------------------------------------------

    def step(self, leaf: str, event: ev.Event) -> None:
        node = self.nodes[leaf]
        for action in node.machine.step(event, self.now):
            self._perform(leaf, node, action)
        node.machine.check_invariants()

    def _perform(self, leaf: str, node: Node, action: act.Action) -> None:
        match action:
            case act.Send():
                self.sent.append((leaf, action))
                self.wire.append((node.machine.me, action))
            case act.Append(ticket, entries):
                node.log.update({entry.seqno: entry for entry in entries})
                node.ticket = ticket
            case act.SaveEpoch(ticket, epoch):
                node.saved_epoch = epoch
                node.ticket = ticket
            case act.Truncate(ticket, after):
                node.log = {seqno: entry for seqno, entry in node.log.items() if seqno <= after}
                node.ticket = ticket
            case act.Apply(entries):
                for entry in entries:
                    if entry.payload is not None:
                        key, value = entry.payload
                        node.state[key] = (value, entry.seqno)
            case act.Evaluate(token):
                key, value = self.values[token]
                request = self._requests.get(token)
                self.step(leaf, ev.Propose(token, request, (key, value), (key,), len(value), f"did {value}"))
            case act.Answer(token, seqno, result):
                self.answers[token] = (seqno, result)
            case act.Refuse(token, reason, _):
                (self.reads if token in self._reading else self.answers)[token] = reason
            case act.ServeRead(token, seqno, _):
                keys = self._reading[token]
                self.reads[token] = {key: node.state.get(key) for key in keys or node.state}
            case act.CompareAndSet():
                self.cas.append((leaf, action))
            case act.ReadConfig():
                if self.is_coordinator_up:
                    self.step(leaf, ev.ConfigSeen(self.stored))
            case act.OpenSnapshot(number):
                node.views[number] = dict(node.state)
            case act.ReadSnapshot(number, cursor):
                self._read_snapshot(leaf, node, number, cursor)
            case act.StageRows(_, index, rows):
                if index == 0:
                    node.staged = {}
                node.staged.update(rows)
            case act.InstallSnapshot():
                node.state, node.log, node.ticket = node.staged, {}, action.ticket

    def _read_snapshot(self, leaf: str, node: Node, number: int, cursor: object) -> None:
        rows = sorted(node.views[number].items())
        first = int(cursor or 0)  # type: ignore[call-overload]
        following = first + 2 if first + 2 < len(rows) else None
        self.step(leaf, ev.SnapshotRows(number, rows[first : first + 2], following))

    def settle(self) -> None:
        """Deliver messages, sync disks and answer the coordinator's callers until nothing is left to do."""
        for _ in range(10_000):
            if self.wire:
                sender, send = self.wire.popleft()
                node = self.nodes.get(send.receiver.leaf)
                if node is not None and node.is_up and not self.is_cut(sender.leaf, send.receiver.leaf):
                    self.step(send.receiver.leaf, ev.Receive(sender, send.receiver, send.message))
                continue
            if self.cas and self.is_coordinator_up:
                self._answer_cas(*self.cas.pop(0))
                continue
            waiting = [
                (leaf, node) for leaf, node in self.nodes.items() if node.is_up and node.ticket and not node.is_disk_held
            ]
            if not waiting:
                return
            for leaf, node in waiting:
                ticket, node.ticket = node.ticket, 0
                self.step(leaf, ev.Durable(ticket))
        raise AssertionError("the machines do not come to rest")

    def _answer_cas(self, leaf: str, asked: act.CompareAndSet) -> None:
        is_done = self.stored.epoch == asked.expected_epoch
        if is_done:
            self.store(replace(asked.config, desired=self.stored.desired), tell=False)
        if self.nodes[leaf].is_up:
            outcome = ev.Outcome.SUCCEEDED if is_done else ev.Outcome.FAILED
            self.step(leaf, ev.CasAnswer(asked.expected_epoch, outcome, self.stored))
        if is_done:
            self.tell()

    def store(self, config: ShardConfig, *, tell: bool = True) -> None:
        """The coordinator holds this now."""
        self.stored = config
        if tell:
            self.tell()

    def tell(self) -> None:
        """The watch brings every replica what the coordinator holds."""
        for leaf, node in self.nodes.items():
            if node.is_up:
                self.step(leaf, ev.ConfigSeen(self.stored))

    def run(self, seconds: float = 0.5) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self.now < until:
            self.now += TIMINGS.tick
            for leaf, node in list(self.nodes.items()):
                if node.is_up:
                    self.step(leaf, ev.Tick())
            self.settle()

    # -- callers --------------------------------------------------------------------------------------------------------

    def write(self, leaf: str, token: int, key: str, value: str, request: RequestId | None = None) -> None:
        """Begin a write of a value."""
        self.values[token] = (key, value)
        if request is not None:
            self._requests[token] = request
        self.step(leaf, ev.Write(token, request, len(value)))

    def read(self, leaf: str, token: int, *keys: str, is_strong: bool = True) -> object:
        """Begin a read; what it was told, if it was told at once."""
        self._reading[token] = keys or None
        self.step(leaf, ev.Read(token, keys or None, is_strong))
        return self.reads.get(token)
