"""How old the oldest write is that an index does not show yet.

Of each collection in a shard it is kept when its writes were applied, from the oldest one on that its index may lack. Writes
that come close together share an entry, which counts as old as its first one; and when there are too many entries, because the
index is far behind, those share one that lie close beside how far it is behind. So the age told is never too small, and too
large by the resolution, or a small part of the whole.

Pure: imports only the standard library.
"""

from typing import Final

RESOLUTION_S: Final = 0.005
"""Writes within so short a time share an entry: a hundredth of the usual refresh interval."""

ENTRIES_MAX: Final = 256
"""A refresh interval's worth, twice. Beyond it entries are thinned out to about half."""


class UnseenWrites:
    """Of one index. `note` and `forget` belong to one thread; `oldest_after` may be called from any."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        # (the last seqno, when the first of its writes was applied); ascending. Only ever replaced or appended to.
        self._entries: list[tuple[int, float]] = []

    def __repr__(self) -> str:
        return f"UnseenWrites({len(self._entries)} entries)"

    def note(self, seqno: int, now: float) -> None:
        """The write with this seqno, greater than those before, has been applied. now: monotonic seconds."""
        entries = self._entries
        if entries and now - entries[-1][1] < RESOLUTION_S:
            entries[-1] = (seqno, entries[-1][1])
            return
        if len(entries) >= ENTRIES_MAX:
            self._entries = entries = _thinned(entries)
        entries.append((seqno, now))

    def forget(self, through: int) -> None:
        """The index shows everything through this seqno."""
        entries = self._entries
        if entries and entries[0][0] <= through:
            self._entries = [entry for entry in entries if entry[0] > through]

    def oldest_after(self, through: int) -> float | None:
        """When the oldest write beyond a seqno was applied; None: there is none."""
        for seqno, noted_at in self._entries:
            if seqno > through:
                return noted_at
        return None


def _thinned(entries: list[tuple[int, float]]) -> list[tuple[int, float]]:
    apart_s = 2 * (entries[-1][1] - entries[0][1]) / ENTRIES_MAX
    kept = entries[:1]
    for seqno, noted_at in entries[1:]:
        if noted_at - kept[-1][1] < apart_s:
            kept[-1] = (seqno, kept[-1][1])
        else:
            kept.append((seqno, noted_at))
    return kept
