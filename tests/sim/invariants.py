"""The oracle of one shard: it sees every step of every replica and raises Violation when an invariant of the design breaks.

The truth it holds is the committed log: an entry is committed when an acting primary first says so, and from then on it must be
in every configuration, on every replica at its seqno, for ever. All checks are incremental.

Where each invariant of the design is checked; after every step of a machine, before what it asks for is done, unless it says
otherwise:

    I1   one acting primary per epoch      `_changed`: by (leaf, boot), and the coordinator must have named it
    I2   committed(secondary) <= committed(primary) <= prepared(secondary)
                                           `_advanced`: only an acting primary commits first; `_check_members`: every member
                                           then holds what is committed; `applying`: nothing beyond it is applied
    I3   (epoch, seqno) names one entry    `appending`: one entry, after one other; `_advanced`: the committed one
    I4   an acked write is in every later configuration
                                           `_check_members` at each commit and each change of a set, `born` for the child of
                                           a split: it exists on every member's disk; `sending`: an ack tells only of what is
                                           on disk; `Simulation.check_acknowledged` in the end
    I5   nothing committed is truncated    `truncating`, `_advanced`
    I6   a new primary was in sync         `config_changes`
    I7   no commit below min_in_sync       `_advanced`; what was prepared before a takeover may be committed by it
    I8   older epochs are refused, epochs are on disk before they are acted on
                                           `heard_older`; `sending`, `_changed`, `recovered`, `config_changes`, `asking`
    I9   no strong answer outside a lease  `_check_strong`: by a member of the newest set, or of the one in which a primary
                                           acts, and nothing that anybody was told is missed
    I10  no uncommitted read               `applying`, `installed`, `recovered`, `read_served`, `answering`
    I11  strong histories are linearizable per key
                                           `Simulation.check_histories`, in the end
    I12  a request takes effect once       `_commit`: once in the log; `answering`, `Client._check_late`: its answers agree;
                                           `_check_dedup`, `divided`: the table is the log's. The child of a split begins
                                           with the requests of its parent
    I13  state = fold(log)                 `applied`, `installed`, `recovered` by digest; of the whole state in the end. The
                                           history of a split's child goes on from its parent's at the entry that splits
    I14  the change feed has each committed entry once, in order
                                           `applying` for what every feed is made of; there is no feed itself here
    I15  searches count each document once not in reach: there is no index here, nor a scattered request. That no key is
                                           in two shards or in none after a split: `floor_of`, and I11 across it
    I16  no deleted key comes back         by I13: the digest is of the keys that are there, and only of them
    I17  extra attempts <= budget          not in reach: hedging is the router's, see `tests/unit/kvshard/tail/`

Besides: `read_served`: the age of a stale answer is true; `check_machine`: what machines promise of themselves; liveness after
healing (`Simulation.heal`).
"""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.disk import State, digest_of, fold
from sim.host import Found, Host, ReadCall, WriteCall
from sim.splits import all_keys
from sim.world import Violation

from kvshard.clustermap import Replica, ShardConfig
from leaf.operations import Split
from leaf.replication.actions import Action, CompareAndSet, InstallSnapshot
from leaf.replication.dedup import DedupTable
from leaf.replication.events import Event
from leaf.replication.machine import Role
from leaf.replication.messages import Beacon, BeaconAck, Entry, Message, Prepare, PrepareAck, RequestId, SnapshotChunk

if TYPE_CHECKING:
    from sim.simulation import Simulation

RATE_MARGIN = 1.12
"""An age told by a slow clock may be this much shorter than true time."""

MACHINE_CHECK_EVERY = 8
"""The machine's own `check_invariants` may look at whole tables, so it is not asked at every step."""


SERVED_ELSEWHERE = 1 << 62
"""As what must be shown at least, of a key that a child of the shard has served: the shard can show nothing of it any more."""


@dataclass
class Part:
    """What has left a shard: by the entry at `seqno`, for the child whose truth is `oracle`."""

    seqno: int
    split: Split
    oracle: "Oracle"
    table: DedupTable


class Oracle:
    """The truth about one shard.

    first_slot, last_slot: its range at first. base, base_epoch: the position that its history begins after, of the entry of
    the parent that split it off; all that lists hold is after it.
    """

    def __init__(
        self, sim: "Simulation", shard: int, first_slot: int, last_slot: int, base: int = 0, base_epoch: int = 0
    ) -> None:
        self.sim = sim
        self.shard = shard
        self.first_slot = first_slot
        self.last_slot = last_slot
        self.base = base
        self.base_epoch = base_epoch
        self.keys = [key for key in all_keys() if first_slot <= key <= last_slot]
        self.log: list[Entry] = []
        self.digests = [0]
        self.state: State = {}
        self.dedup: DedupTable = sim.new_dedup()
        self.requests: dict[tuple[str, int], Entry] = {}
        self.acting: dict[int, tuple[str, int]] = {}
        self.configs: dict[int, ShardConfig] = {}
        self.named: dict[tuple[int, int], tuple[Entry, int]] = {}
        self.counts: Counter[str] = Counter()
        self.parts: list[Part] = []
        self._floor: dict[int, int] = {}
        self._floor_of_all = 0
        self._ack_times: list[float] = []
        self._ack_seqnos: list[int] = []
        self._steps = 0

    def entry_at(self, seqno: int) -> Entry | None:
        """The committed entry at a seqno; None where none is, or none of this shard."""
        return self.log[seqno - self.base - 1] if self.base < seqno <= self.frontier else None

    def digest_at(self, seqno: int) -> int:
        """Of the state after that entry. Before the first one, and before a split's child began, there is nothing."""
        return self.digests[seqno - self.base] if seqno >= self.base else 0

    def keys_at(self, seqno: int) -> list[int]:
        """The keys that the shard had when that entry was applied."""
        last_slot = min([self.last_slot, *(part.split.at_slot - 1 for part in self.parts if part.seqno < seqno)])
        return [key for key in self.keys if key <= last_slot]

    @property
    def frontier(self) -> int:
        """The highest committed seqno."""
        return self.base + len(self.log)

    def require(self, is_so: bool, rule: str, host: object, what: str) -> None:
        """Raise Violation unless it is so."""
        if not is_so:
            raise Violation(f"{rule}: shard {self.shard} at {host}: {what} (frontier {self.frontier})")

    # Steps of machines

    def recovered(self, host: Host) -> None:
        """A process has loaded a replica."""
        machine = host.machine
        host.seen_committed = machine.committed
        host.seen_epoch = machine.epoch
        self.require(machine.epoch >= host.image.epoch, "I8", host, f"recovered below the epoch on disk, {host.image.epoch}")
        self.require(machine.committed <= self.frontier, "I10", host, "recovered more than was ever committed")
        self.require(
            host.digest == self.digest_at(host.applied), "I13", host, f"the recovered state is not that of {host.applied}"
        )

    def heard_older(self, host: Host, event: Event, before: tuple[object, ...] | None) -> None:
        """A message of an older epoch was received."""
        self.require(host.marks == before, "I8", host, f"was changed from {before} by {event}, which is of an older epoch")

    def after_step(self, host: Host, actions: list[Action]) -> None:
        """Called before the actions of a step are performed."""
        machine = host.machine
        was_primary = host.seen_role is Role.PRIMARY
        if machine.epoch != host.seen_epoch or machine.role is not host.seen_role or machine.reign is not host.seen_reign:
            self._changed(host)
        if machine.committed != host.seen_committed:
            self._advanced(host, was_primary, any(type(action) is InstallSnapshot for action in actions))
        self._steps += 1
        if self._steps % MACHINE_CHECK_EVERY == 0:
            self.check_machine(host)

    def check_machine(self, host: Host) -> None:
        """What the machine promises of itself."""
        host.machine.check_invariants()

    def after_actions(self, host: Host) -> None:
        """Called when they are."""
        machine = host.machine
        self.require(machine.applied == host.applied, "I13", host, f"applied {machine.applied}, the state is at {host.applied}")
        if host.is_dedup_due and host.applied == self.frontier:
            host.is_dedup_due = False
            self._check_dedup(host)

    def _changed(self, host: Host) -> None:
        machine = host.machine
        self.require(machine.epoch >= host.seen_epoch, "I8", host, f"the epoch fell from {host.seen_epoch}")
        if machine.reign is not None:
            config = self.configs.get(machine.epoch)
            known = config is not None and config.primary == machine.me.leaf and machine.me in config.in_sync
            self.require(known, "I1", host, f"acts in an epoch that the coordinator gave to {config}")
            mine = (host.leaf.id, host.boot)
            acting = self.acting.setdefault(machine.epoch, mine)
            self.require(acting == mine, "I1", host, f"(leaf, boot) {acting} acts in this epoch too")
        if machine.role is not host.seen_role:
            self.counts[machine.role.name] += 1
            if machine.role is Role.PRIMARY:
                self.sim.leads(host.leaf, self.shard)
        host.seen_epoch = machine.epoch
        host.seen_role = machine.role
        host.seen_reign = machine.reign

    def _advanced(self, host: Host, was_primary: bool, is_installing: bool) -> None:
        machine = host.machine
        before, after = host.seen_committed, machine.committed
        self.require(after > before, "I5", host, f"committed fell from {before} to {after}")
        entries = [] if is_installing else host.log[max(before - host.log_base, 0) : after - host.log_base]
        frontier = self.frontier
        for entry in entries:
            if entry.seqno <= frontier:
                truth = self.entry_at(entry.seqno)
                self.require(entry is truth or entry == truth, "I3", host, f"{entry} is committed here, elsewhere {truth}")
        if after > frontier:
            acting = machine.reign is not None and self.acting.get(machine.epoch) == (host.leaf.id, host.boot)
            self.require(acting, "I2", host, f"commits {after} first and is no acting primary")
            self.require(len(entries) >= after - frontier, "I2", host, f"commits {after} without the entries")
            for entry in entries[frontier - after :]:
                self._commit(host, entry)
            config = machine.config
            is_enough = config is not None and len(config.in_sync) >= self.sim.min_in_sync
            self.require(is_enough or not was_primary, "I7", host, "commits with too few in sync")
            self._check_members(self.sim.coordinator.configs[self.shard], host)
        host.seen_committed = after

    def _commit(self, host: Host, entry: Entry) -> None:
        if isinstance(entry.payload, Split):
            self._divide(entry, entry.payload)
        self.log.append(entry)
        self.digests.append(fold(self.state, entry, self.digests[-1]))
        self.counts["commits"] += 1
        if entry.request is not None:
            name = (entry.request.client, entry.request.number)
            self.require(name not in self.requests, "I12", host, f"{entry} was committed before: {self.requests.get(name)}")
            self.requests[name] = entry
            self.dedup.record(entry.request, entry.seqno, entry.result)

    def _divide(self, entry: Entry, split: Split) -> None:
        """A split is committed: from here on the part that leaves has a history of its own, which goes on from this one's."""
        self.counts["splits committed"] += 1
        child = Oracle(self.sim, split.child, split.at_slot, split.last_slot, entry.seqno, entry.epoch)
        child.state = {key: item for key, item in self.state.items() if key >= split.at_slot}
        child.digests = [digest_of(child.state)]
        child.dedup = self.dedup.copy()
        child.requests = dict(self.requests)
        child._floor = {key: seqno for key, seqno in self._floor.items() if key >= split.at_slot}
        child._floor_of_all = self._floor_of_all
        child._ack_times, child._ack_seqnos = list(self._ack_times), list(self._ack_seqnos)
        self.parts.append(Part(entry.seqno, split, child, self.dedup.copy()))
        self.sim.oracles[split.child] = child

    def divided(self, host: Host, seqno: int, table: DedupTable) -> None:
        """A replica has applied a split: what it takes for the table of requests at that entry, the child begins with."""
        (part,) = (part for part in self.parts if part.seqno == seqno)
        is_same = (table.records(), table.forgotten_through) == (part.table.records(), part.table.forgotten_through)
        self.require(is_same, "I12", host, f"the table of requests at the split {seqno} is not the log's")

    def born(self, config: ShardConfig) -> None:
        """The coordinator is about to store the shard for the first time."""
        self._check_members(config, "coordinator")
        self.configs[config.epoch] = config

    def _check_members(self, config: ShardConfig, about: object) -> None:
        seqno = self.frontier
        epoch = self.log[-1].epoch if self.log else self.base_epoch
        for replica in config.in_sync:
            image = self.sim.leaves[replica.leaf].disk.images.get(self.shard)
            if not seqno:
                continue
            if image is None or image.incarnation != replica.incarnation:
                self._check_unborn(replica, about)
                continue  # Lost, not trusted, not yet there: holds nothing and cannot speak.
            holds = image.base_seqno > seqno or image.epoch_at(seqno) == epoch
            self.require(
                holds, "I4", about, f"{replica} in sync of {config} holds through {image.last}, {seqno} of {epoch} is committed"
            )

    def _check_unborn(self, replica: Replica, about: object) -> None:
        """Data that a split was to bring has been there, or was lost with all that the disk had: it is not still to come."""
        is_to_come = self.sim.leaves[replica.leaf].disk.will_divide(replica, self.shard)
        self.require(not is_to_come, "I4", about, f"{replica} is in sync and has not applied the split yet")

    def config_changes(self, before: ShardConfig, after: ShardConfig) -> None:
        """The coordinator is about to store a configuration."""
        if after.epoch != before.epoch:
            self.require(after.epoch == before.epoch + 1, "I8", after, f"follows epoch {before.epoch}")
            was_in_sync = {each.leaf: each.incarnation for each in before.in_sync}
            (primary,) = (each for each in after.in_sync if each.leaf == after.primary)
            is_legal = was_in_sync.get(primary.leaf) in (primary.incarnation, "")
            self.require(is_legal, "I6", after, f"its primary was not in sync before: {before}")
            self.counts["primary changes"] += after.primary != before.primary
            self.counts["evictions"] += len(after.in_sync) < len(before.in_sync)
            self.counts["taken in sync"] += len(after.in_sync) > len(before.in_sync)
        self._check_members(after, "coordinator")
        self.configs[after.epoch] = after

    def asking(self, host: Host, action: CompareAndSet) -> None:
        """A replica asks the coordinator for a change."""
        self.require(action.config.epoch == action.expected_epoch + 1, "I8", host, f"asks for {action}")

    # Actions

    def sending(self, host: Host, message: Message) -> None:
        """A message leaves a replica."""
        kind = type(message)
        if kind is PrepareAck or kind is BeaconAck:
            image = host.image
            self.require(image.epoch >= message.epoch, "I8", host, f"{message} with epoch {image.epoch} on disk")
            self.require(image.last >= message.acked, "I4", host, f"{message} with {image.last} on disk")  # type: ignore[union-attr]
        elif kind is Prepare or kind is Beacon or kind is SnapshotChunk:
            self.require(host.image.epoch >= message.epoch, "I8", host, f"{message} with epoch {host.image.epoch} on disk")

    def appending(self, host: Host, entries: tuple[Entry, ...]) -> None:
        """Entries join a log."""
        last = host.log[-1] if host.log else None
        machine = host.machine
        for entry in entries:
            previous = machine.log.base_epoch if last is None else last.epoch
            known = self.named.setdefault((entry.epoch, entry.seqno), (entry, previous))
            is_same = known[0] is entry or known[0] == entry
            self.require(
                is_same and (last is None or known[1] == previous), "I3", host, f"{entry} after {previous}, known as {known}"
            )
            last = entry

    def truncating(self, host: Host, removed: list[Entry]) -> None:
        """Entries leave the end of a log."""
        self.counts["truncated"] += len(removed)
        for entry in removed:
            is_committed = self.entry_at(entry.seqno) == entry
            self.require(not is_committed, "I5", host, f"truncates {entry}, which is committed")

    def applying(self, host: Host, entries: tuple[Entry, ...]) -> None:
        """Entries are about to change the state that readers see."""
        seqno = host.applied
        for entry in entries:
            seqno += 1
            self.require(entry.seqno == seqno, "I13", host, f"applies {entry} after {seqno - 1}")
            is_committed = self.entry_at(seqno) == entry
            self.require(is_committed, "I10", host, f"applies {entry}, which is not committed")
        self.require(host.image.last >= seqno, "I10", host, f"applies {seqno}, on disk are entries through {host.image.last}")

    def applied(self, host: Host) -> None:
        """They have."""
        self.require(host.digest == self.digest_at(host.applied), "I13", host, f"the state at {host.applied} is not the log's")
        if host.applied & 31 == 0:
            host.is_dedup_due = True

    def installed(self, host: Host, action: InstallSnapshot) -> None:
        """A snapshot has become the state."""
        self.counts["snapshots"] += 1
        self.require(action.seqno <= self.frontier, "I10", host, "installs a snapshot of what is not committed")
        self.require(
            host.digest == self.digest_at(action.seqno), "I13", host, f"the snapshot is not the state at {action.seqno}"
        )

    def _check_dedup(self, host: Host) -> None:
        mine, truth = host.machine.dedup, self.dedup
        is_same = mine.records() == truth.records() and mine.forgotten_through == truth.forgotten_through
        self.require(is_same, "I12", host, f"its dedup table at {host.applied} is not the log's")

    # Calls

    def floor_of(self, keys: tuple[int, ...] | None) -> int:
        """The newest seqno of these keys that anybody has been told of: a strong read that comes now must show it."""
        if keys is None:
            return max(self._floor.values(), default=self._floor_of_all)
        for part in self.parts:
            if any(key >= part.split.at_slot and part.oracle.floor_of((key,)) > part.seqno for key in keys):
                return SERVED_ELSEWHERE
        return max((self._floor.get(key, 0) for key in keys), default=0) or self._floor_of_all

    def _raise_floor(self, key: int, seqno: int) -> None:
        if seqno > self._floor.get(key, 0):
            self._floor[key] = max(seqno, self._floor_of_all)

    def answering(self, host: Host, call: WriteCall, seqno: int, result: object) -> None:
        """A caller is told that a write is done, or that its condition failed (seqno 0)."""
        request = call.request
        assert isinstance(result, tuple)
        if not seqno:
            self._check_strong(host, call.floor, "concludes")
            version = result[1][1] if result[1] else 0
            self.require(version <= self.frontier, "I10", host, f"tells version {version}")
            if version:
                self._raise_floor(request.values[0][0], version)
            self.counts["conditions failed"] += 1
            return
        entry = self.requests.get((request.id.client, request.id.number))
        is_true = entry is not None and (entry.seqno, entry.result) == (seqno, result)
        self.require(is_true, "I12", host, f"answers {request} with {seqno} {result}, committed is {entry}")
        self.counts["answers"] += 1
        for key, _ in request.values:
            self._raise_floor(key, seqno)
        if not request.values:
            self._floor_of_all = max(self._floor_of_all, seqno)
            for key in self._floor:
                self._raise_floor(key, seqno)
        self._ack_times.append(self.sim.world.now)
        self._ack_seqnos.append(max(seqno, self._ack_seqnos[-1] if self._ack_seqnos else 0))

    def read_served(self, host: Host, call: ReadCall, seqno: int, age_s: float | None, found: Found) -> None:
        """A caller is about to be given values out of the state of a replica."""
        for held in found.values():
            self.require(held is None or held[1] <= seqno, "I10", host, f"shows {held} at {seqno}")
        self.require(seqno == host.applied, "I10", host, f"says {seqno}, the state is at {host.applied}")
        if call.is_strong:
            self._check_strong(host, call.floor, "reads")
            self.counts["reads at a primary" if host.machine.role is Role.PRIMARY else "reads at a secondary"] += 1
            for key in call.keys or ():
                held = host.state.get(key)
                if held is not None:
                    self._raise_floor(key, held[1])
            return
        self.counts["stale reads"] += 1
        if age_s is not None:
            index = bisect_right(self._ack_times, self.sim.world.now - age_s * RATE_MARGIN - 1e-9)
            newest = self._ack_seqnos[index - 1] if index else 0
            self.require(seqno >= newest, "age", host, f"age {age_s} at {seqno}, acknowledged before that: {newest}")

    def _check_strong(self, host: Host, floor: int, what: str) -> None:
        config = self.sim.coordinator.configs[self.shard]
        self.require(host.applied >= floor, "I9", host, f"{what} at {host.applied}, {floor} was told before")
        # A takeover may be stored late, while the old primary has a lease by a later promise: then the new one must wait, and
        # until it acts the configuration before is the one whose members may answer.
        acting = self.configs[max(self.acting)] if self.acting else config
        is_member = host.machine.me in config.in_sync or host.machine.me in acting.in_sync
        self.require(is_member, "I9", host, f"{what} and is not in sync: {config}")

    # The end of a run

    def has_request(self, seqno: int, request: RequestId) -> bool:
        """The request was committed as that entry, here or before the shard was split off."""
        entry = self.requests.get((request.client, request.number))
        return entry is not None and entry.seqno == seqno

    def holds_entry(self, host: Host, seqno: int) -> bool:
        """The entry is in the state of a replica, or it has it in its log and is about to hear that it is committed."""
        entry = self.entry_at(seqno)
        return host.applied >= seqno or (entry is not None and host.machine.log.epoch_at(seqno) == entry.epoch)

    def is_state_true(self, host: Host) -> bool:
        """The state of a replica, looked at anew, is what the log makes of it."""
        return self.base <= host.applied <= self.frontier and digest_of(host.state) == self.digest_at(host.applied)

    def holds(self, replica: Replica) -> bool:
        """The replica's data still exists."""
        image = self.sim.leaves[replica.leaf].disk.images.get(self.shard)
        return image is not None and image.incarnation == replica.incarnation
