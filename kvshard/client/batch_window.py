"""How many frames of gathered calls may be in flight, and when a further one may be sent.

A frame costs as much as dozens of its keys, at the client, the router and the leaves, so a few of them are kept in flight and
what is called meanwhile gathers. Two things must not follow from that:

- Calls that wait although nobody is busy, since the answers are only far away: one more frame is sent GAP_S after the last.
- A shard that does not answer and holds up the calls for all others, since each frame has some of its keys: a frame that is out
  for LATE_S takes no place any more, and makes the window careful. From then on each frame carries keys of one bucket of the
  token space, and few frames of a bucket are out at once. A second after the last late frame all is as before.

Buckets are cut as shards are, along the token space, so a silent shard holds up its own buckets, and what lay in the frames
that were out when it fell silent. (A cluster whose map has a hash seed of its own cuts elsewhere: there, all buckets have keys
of each shard.) Where everything is slow, at most four frames more in LATE_S follow from this.

Pure: imports only the standard library and other pure files.
"""

from kvshard.hashing import SLOT_BITS, slot

IN_FLIGHT_FEW = 4
"""Frames in flight beyond which calls gather: one is answered, one read, one served and one on the way."""

GAP_S = 0.005
"""After that long without a sending one more frame goes out: 200 a second are a few percent of a core, and nobody waits longer
for a place while the router answers."""

IN_FLIGHT_MOST = 64
"""With those that are late and those that the gap lets through: more answers outstanding mean that the router does not keep
up."""

LATE_S = 0.05
"""Twenty times what a frame takes on one machine, and less than a person notices. Where every answer takes longer, the window
is always careful; that costs smaller frames, of which more are in flight."""

CAREFUL_FOR_S = 1.0
"""A silent shard shows itself frame by frame; between two of them nothing is late. Longer than a pause between repetitions."""

BUCKETS = 16
"""Parts of the token space: with 8 shards a silent one holds up an eighth of the keys, with more shards a sixteenth."""

BUCKET_FRAMES = 4
"""Frames of a bucket in flight, late ones included: what is far away does not make calls wait for each other, and what is
silent does not take all."""

_NEVER = float("inf")
_BUCKET_SHIFT = SLOT_BITS - (BUCKETS - 1).bit_length()


def bucket_of(key: bytes) -> int:
    """The bucket of a key, 0 to BUCKETS - 1."""
    return slot(key, 0) >> _BUCKET_SHIFT


class Window:
    """The frames in flight: each with its bucket, None for one that carries keys of any.

    Invariants: at most IN_FLIGHT_MOST frames are in flight, and BUCKET_FRAMES of each bucket.
    """

    __slots__ = ("_careful_until", "_counts", "_last_sent", "_late", "_young")

    def __init__(self) -> None:
        self._young: dict[object, tuple[int | None, float]] = {}  # By the time of their sending.
        self._late: dict[object, int | None] = {}
        self._counts: dict[int | None, int] = {}
        self._last_sent = -_NEVER
        self._careful_until = -_NEVER

    def __repr__(self) -> str:
        return f"Window(in_flight={len(self)}, late={len(self._late)})"

    def __len__(self) -> int:
        return len(self._young) + len(self._late)

    def is_careful(self, now: float) -> bool:
        """Whether frames have to keep to one bucket."""
        self._look(now)
        return now < self._careful_until

    def places(self, bucket: int | None, now: float) -> int:
        """How many frames may be sent now."""
        self._look(now)
        young = len(self._young)
        if not self._late and young < IN_FLIGHT_FEW:  # The usual case.
            free = IN_FLIGHT_FEW - young
        else:
            in_flight = young + len(self._late)
            free = min(IN_FLIGHT_FEW - young, IN_FLIGHT_MOST - in_flight)
            if free <= 0:
                free = int(in_flight < IN_FLIGHT_MOST and now - self._last_sent >= GAP_S)
        return free if bucket is None else min(free, BUCKET_FRAMES - self._counts.get(bucket, 0))

    def is_full_for(self, bucket: int | None) -> bool:
        """Whether only an answer makes a place for the bucket."""
        return bucket is not None and self._counts.get(bucket, 0) >= BUCKET_FRAMES

    def look_again_at(self) -> float:
        """When there may be a place without any frame having ended; infinity: then there cannot be one."""
        if len(self) >= IN_FLIGHT_MOST:
            return _NEVER
        oldest = next((sent_at for _, sent_at in self._young.values()), _NEVER)
        return min(self._last_sent + GAP_S, oldest + LATE_S)

    def sent(self, frame: object, bucket: int | None, now: float) -> None:
        """A frame goes out; there was a place for it."""
        self._young[frame] = bucket, now
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._last_sent = now

    def ended(self, frame: object) -> None:
        """A frame was answered, or given up. A second time does nothing."""
        if frame in self._young:
            bucket = self._young.pop(frame)[0]
        elif frame in self._late:
            bucket = self._late.pop(frame)
        else:
            return
        self._counts[bucket] -= 1
        if not self._counts[bucket]:
            del self._counts[bucket]

    def _look(self, now: float) -> None:
        """Take note of the frames that are late by now."""
        while self._young:
            frame, (bucket, sent_at) = next(iter(self._young.items()))
            if now - sent_at < LATE_S:
                break
            del self._young[frame]
            self._late[frame] = bucket
        if self._late:
            self._careful_until = now + CAREFUL_FOR_S

    def check_invariants(self) -> None:
        """Raise AssertionError unless the invariants of the class hold."""
        counts: dict[int | None, int] = {}
        for bucket in (*(bucket for bucket, _ in self._young.values()), *self._late.values()):
            counts[bucket] = counts.get(bucket, 0) + 1
        assert counts == self._counts, repr(self)
        assert len(self) <= IN_FLIGHT_MOST, repr(self)
        assert all(count <= BUCKET_FRAMES for bucket, count in counts.items() if bucket is not None), repr(self)
