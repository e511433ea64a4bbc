"""What a primary knows of one other replica: how far its log is, what is under way to it, and what it was promised.

Pure: imports only the standard library and other pure files.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final

from kvshard.clustermap import Replica
from leaf.replication.actions import CloseSnapshot, OpenSnapshot, ReadSnapshot
from leaf.replication.core import Core
from leaf.replication.messages import DedupRecord, Echo, Prepare, SnapshotAck, SnapshotChunk

WINDOW_ENTRIES: Final = 1_024
WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Entries under way to one replica: some round trips' worth. One larger entry goes alone."""

BATCH_ENTRIES: Final = 256
BATCH_BYTES: Final = 256 * 1024
"""Of one message, so that a beacon never waits long behind it, nor the receiver's event loop while it is taken in."""

CHUNKS_MAX: Final = 4
"""Pieces of a snapshot, about 1 MiB each, that are not acknowledged."""

RESEND_FACTOR_MAX: Final = 4
"""The pause before sending again doubles up to so many times the first: a slow replica must not be buried."""


@dataclass(slots=True)
class Sending:
    """A snapshot on its way. chunks: those not acknowledged, by index. is_reading: the driver is at it."""

    snapshot: int
    seqno: int
    seqno_epoch: int
    dedup: tuple[DedupRecord, ...]
    forgotten_through: int
    chunks: dict[int, SnapshotChunk] = field(default_factory=dict)
    next_index: int = 0
    cursor: object = None
    is_reading: bool = False
    is_read: bool = False
    resend_at: float = 0.0


class Peer:
    """One other replica of the shard, for the reign of a primary.

    acked: its log is equal to the primary's, and durable, through this seqno. granted_at: when the newest echo came that it was
    granted a read lease by. unacked_since: how long the oldest entry sent has been waiting for progress. level_as_of: it has
    whatever was committed then.
    """

    def __init__(self, replica: Replica, is_in_sync: bool, last: int, now: float) -> None:
        self.replica = replica
        self.is_in_sync = is_in_sync
        self.acked = 0
        self.sent = last
        self.is_probing = True
        self.known_epoch = 0
        self.last_ack_at: float | None = None
        self.beacon_acked_sent_at = float("-inf")
        self.echo: Echo | None = None
        self.echo_came_at = float("-inf")
        self.granted_at = float("-inf")
        self.unacked_since: float | None = None
        self.is_leaving = False
        self.is_greeted = False
        self.is_stopping = False
        self.is_full = False
        self.ready_for: int | None = None
        self.divided_off: int | None = None
        self.sending: Sending | None = None
        self.since = now
        self.level_as_of = float("-inf")
        self.join_not_before = now
        self._level_mark: tuple[int, float] | None = None
        self._asked_through = 0
        self._flight: deque[tuple[int, int]] = deque()
        self._flight_bytes = 0
        self._has_probed_base = False
        self._resend_at = float("inf")
        self._resend_pause = 0.1
        self._probed_at = float("-inf")

    def __repr__(self) -> str:
        return f"Peer({self.replica.leaf}, acked={self.acked}, sent={self.sent}, in_sync={self.is_in_sync})"

    def restart(self, core: Core) -> None:
        """Go on in a new epoch of the same primary: what it acknowledged stays, what is under way is sent again."""
        if self.sending is not None:
            for index, chunk in self.sending.chunks.items():
                self.sending.chunks[index] = replace(chunk, epoch=core.epoch)
                core.send(self.replica, self.sending.chunks[index])
            return
        self.sent = max(self.acked, core.log.base_seqno) if self.acked else core.last
        self.is_probing = True
        self._clear_flight(core)
        self._probed_at = float("-inf")

    def _clear_flight(self, core: Core) -> None:
        self._flight.clear()
        self._flight_bytes = 0
        self._resend_at = float("inf")
        self._resend_pause = core.timings.resend_after

    # -- the log --------------------------------------------------------------------------------------------------------

    def pump(self, core: Core, now: float) -> bool:
        """Send what may be sent. Returns whether the committed seqno went with it."""
        if self.sending is not None or not self.replica.incarnation:
            return False
        if self.sent < core.log.base_seqno:
            return self._fall_behind(core, now)
        if self.is_probing:
            return self._probe(core, now)
        has_sent = False
        while self.sent < core.last and len(self._flight) < WINDOW_ENTRIES and self._flight_bytes < WINDOW_BYTES:
            room = WINDOW_ENTRIES - (self.sent - self.acked)
            if room <= 0:
                break
            entries = core.log.batch(self.sent, min(BATCH_ENTRIES, room), BATCH_BYTES)
            epoch = core.log.epoch_at(self.sent)
            assert epoch is not None
            core.send(self.replica, Prepare(core.epoch, epoch, self.sent, entries, core.committed))
            self.sent = entries[-1].seqno
            size = sum(entry.size for entry in entries)
            self._flight.append((self.sent, size))
            self._flight_bytes += size
            self._note_asked(now)
            if self._resend_at == float("inf"):
                self._resend_pause = core.timings.resend_after
                self._resend_at = now + self._resend_pause
            has_sent = True
        return has_sent

    def _probe(self, core: Core, now: float) -> bool:
        """Ask whether the logs agree where the primary thinks; one question at a time."""
        if now - self._probed_at < core.timings.resend_after:
            return False
        self._probed_at = now
        epoch = core.log.epoch_at(self.sent)
        assert epoch is not None
        core.send(self.replica, Prepare(core.epoch, epoch, self.sent, (), core.committed))
        self._note_asked(now)
        return True

    def _note_asked(self, now: float) -> None:
        self._asked_through = max(self._asked_through, self.sent)
        if self.unacked_since is None:
            self.unacked_since = now

    def on_ack(self, core: Core, acked: int, now: float, *, is_answer: bool) -> None:
        """It has the log through a seqno. is_answer: to a Prepare; a beacon's says nothing of what is under way.

        What does not reach the place that was asked about is no answer to a probe: a replica also acknowledges unasked, what it
        knows to be committed when it enters an epoch. The probe may have come before it did, and be lost.
        """
        if self.sending is not None:
            if acked >= self.sending.seqno:
                self._has_received(core, acked)  # Only the answer to the last chunk was lost.
            return
        if is_answer and acked >= self.sent:
            self.is_probing = False
        elif not is_answer and acked < self.acked and self.sent == self.acked:
            # It has started anew and does not know that the end of its log is this primary's; no write may come to tell it.
            self.is_probing = True
        if acked > self.acked or self._asked_through <= acked:
            # Progress; merely to answer again what it had acknowledged is none.
            self.unacked_since = now if self._asked_through > acked else None
        if acked > self.acked or self.sent <= acked:
            self._resend_pause = core.timings.resend_after
            self._resend_at = now + self._resend_pause if self.sent > acked else float("inf")
        self.acked = max(self.acked, acked)
        self.sent = max(self.sent, self.acked)
        while self._flight and self._flight[0][0] <= self.acked:
            self._flight_bytes -= self._flight.popleft()[1]

    def on_nack(self, core: Core, prev_seqno: int, hint: int, needs_snapshot: bool, now: float) -> None:
        """It does not have the entry at prev_seqno."""
        is_late = prev_seqno <= self.acked or prev_seqno > self.sent
        if self.sending is not None or (is_late and not needs_snapshot):
            return
        self._clear_flight(core)
        self._probed_at = float("-inf")
        self.is_probing = True
        base = core.log.base_seqno
        hint = max(hint, self.acked)  # One that was sent before it had so much may come late, and takes nothing back.
        if needs_snapshot or (hint < base and self._has_probed_base):
            self.acked = 0
            self.sent = -1
        elif hint < base:
            # Its hint is the begin of a run of entries that differ; the last position known here may still agree.
            self._has_probed_base = True
            self.sent = base
        else:
            self.sent = hint

    def note_level(self, committed: int, now: float) -> None:
        """At each tick: how far behind is it? A learner far away never has all that is committed now while there are writes."""
        mark = self._level_mark
        if mark is None or self.acked >= mark[0]:
            self.level_as_of = mark[1] if mark is not None else self.level_as_of
            self._level_mark = (committed, now)

    def resend(self, core: Core, now: float) -> None:
        """Send again what has seen no progress for too long."""
        if self.sending is not None:
            if now >= self.sending.resend_at and self.sending.chunks:
                self.sending.resend_at = now + 4 * core.timings.resend_after
                core.send(self.replica, self.sending.chunks[min(self.sending.chunks)])
            return
        if self._resend_at == float("inf") and self.sent > self.acked and not self.is_probing:
            self._resend_at = now + self._resend_pause  # Nothing is under way that could bring the answer.
        if now >= self._resend_at:
            pause = min(2 * self._resend_pause, RESEND_FACTOR_MAX * core.timings.resend_after)
            self.sent = max(self.acked, core.log.base_seqno)
            self._clear_flight(core)
            self._resend_pause = pause
            self.is_probing = True
            self._probed_at = float("-inf")
        self.pump(core, now)

    def _fall_behind(self, core: Core, now: float) -> bool:
        """The log that it needs is gone; a replica in sync never needs it."""
        if self.is_in_sync:
            self.sent = core.log.base_seqno
            self.is_probing = True
            return self._probe(core, now)
        core.pinned = core.committed if core.pinned is None else min(core.pinned, core.committed)
        epoch = core.log.epoch_at(core.committed)
        assert epoch is not None
        core.snapshots += 1
        self.acked = 0
        self.sending = Sending(core.snapshots, core.committed, epoch, core.dedup.records(), core.dedup.forgotten_through)
        core.out.append(OpenSnapshot(self.sending.snapshot))
        self._read_on(core)
        return False

    # -- snapshots ------------------------------------------------------------------------------------------------------

    def _read_on(self, core: Core) -> None:
        sending = self.sending
        assert sending is not None
        if sending.is_reading or sending.is_read or len(sending.chunks) >= CHUNKS_MAX:
            return
        sending.is_reading = True
        core.out.append(ReadSnapshot(sending.snapshot, sending.cursor))

    def on_rows(self, core: Core, rows: object, cursor: object, now: float) -> None:
        """A piece of the snapshot was read."""
        sending = self.sending
        assert sending is not None
        sending.is_reading = False
        sending.cursor = cursor
        sending.is_read = cursor is None
        dedup, forgotten = (sending.dedup, sending.forgotten_through) if sending.is_read else ((), 0)
        chunk = SnapshotChunk(
            core.epoch,
            sending.snapshot,
            sending.next_index,
            sending.seqno,
            sending.seqno_epoch,
            rows,
            sending.is_read,
            dedup,
            forgotten,
        )
        sending.chunks[sending.next_index] = chunk
        sending.next_index += 1
        sending.resend_at = now + 4 * core.timings.resend_after
        core.send(self.replica, chunk)
        self._read_on(core)

    def on_chunk_ack(self, core: Core, ack: SnapshotAck, now: float) -> None:
        """A piece arrived; the last one is acknowledged when the whole is durable."""
        sending = self.sending
        if sending is None or sending.snapshot != ack.snapshot:
            return
        if ack.index < 0:
            if sending.next_index and 0 not in sending.chunks:
                self.stop_sending(core)  # It had the first chunk, and has lost it.
            return
        for index in [index for index in sending.chunks if index <= ack.index]:
            del sending.chunks[index]
        sending.resend_at = now + 4 * core.timings.resend_after
        if sending.is_read and not sending.chunks:
            self._has_received(core, sending.seqno)
            return
        self._read_on(core)

    def _has_received(self, core: Core, acked: int) -> None:
        """The snapshot is durable there: go on with the log."""
        self.stop_sending(core)
        self.acked = self.sent = acked
        self.is_probing = True
        self._probed_at = float("-inf")
        self._has_probed_base = False
        self._clear_flight(core)

    def stop_sending(self, core: Core) -> None:
        """Give up the snapshot under way, if there is one."""
        if self.sending is not None:
            core.out.append(CloseSnapshot(self.sending.snapshot))
            self.sending = None
            self.sent = -1
