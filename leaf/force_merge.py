"""Merges the small segments of an index that has been quiet for a while: a search pays for each of them.

tantivy merges segments only when eight are of one size class (`leaf/segments.py`), so documents are written again as they are,
each with a commit of its own, until there are eight; the merge then runs on tantivy's threads. At no time does a searcher see
anything else than before: what is written again is what the index holds, and each commit is whole. So a crash in between leaves
some segments more, and nothing to tidy up.

An index of few documents is written again as a whole; what it was made of before is then empty, and goes.

    NONE -> FILLING -> MERGING -> NONE        of an index whose writer was closed and that has changed since it was last merged
    FILLING, MERGING -> NONE                  something was written; all from the start once the index is quiet again

One index of a leaf at a time, with rests in between (`MergeTurn`). It is not needed for anything, so what fails is let be until
the index has changed again.
"""

import shutil
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Final, TypeAlias

import structlog

from kvshard.clock import Clock
from kvshard.errors import KvShardError
from leaf.log_source import LogSource
from leaf.segments import MERGE_AT, fillers_wanted, smallest_class
from leaf.text_index import IndexFailed, TextIndex

MERGE_WAIT_S: Final = 1.0
"""After the last document was written the merge has so long; the writer is closed with what is left of it."""

FILLERS_MAX: Final = 2 * MERGE_AT
"""Documents written again at most. One that was alone in its segment makes no further one: the old one goes."""

WHOLE_MAX_DOCUMENTS: Final = 256
"""An index of so few is written again as a whole, in about 10 ms; seven commits take longer."""

FILLER_MAX_BYTES: Final = 64 * 1024
"""Of a document that is written again; longer ones are passed over, since any document will do."""

LOOK_AGAIN_S: Final = 1.0
"""Who has to wait for its turn looks again after so long."""

REST_S: Final = 1.0
REST_S_PER_MB: Final = 1.0
"""Between two merges of a leaf; the second for each megabyte merged, which takes about 0.05 s: so a leaf whose shards are
written to now and then merges for no more than a twentieth of its time."""

FREE_BYTES: Final = 128 * 1024 * 1024
"""Less room on the disk than this and twice the segments is left to those who need it."""

Document: TypeAlias = tuple[bytes, bytes, int]
"""(key, value, expires_at_ms)."""

logger = structlog.get_logger(__name__)


class Stage(Enum):
    """What a merge is at."""

    NONE = "none"
    FILLING = "filling"
    MERGING = "merging"


class MergeTurn:
    """Whose turn it is among the indexes of a leaf. Taken and given back on the indexing thread."""

    def __init__(self) -> None:
        self._holder: object | None = None
        self._rest_until = float("-inf")

    def __repr__(self) -> str:
        return f"MergeTurn({self._holder!r}, rest until {self._rest_until:.1f})"

    def free_at(self, now: float) -> float:
        """When to ask for it."""
        return self._rest_until if self._holder is None else max(self._rest_until, now + LOOK_AGAIN_S)

    def take(self, holder: object, now: float) -> bool:
        """Whether it is the holder's now."""
        if self._holder is not None or now < self._rest_until:
            return False
        self._holder = holder
        return True

    def give_back(self, holder: object, rest_until: float) -> None:
        """If it was the holder's, it is the next one's after a rest."""
        if self._holder is holder:
            self._holder, self._rest_until = None, rest_until


class ForceMerge:
    """The merges of one index. `due_at` and `stage` may be looked at on the event loop; all else is the indexing thread's."""

    def __init__(self, shard: int, collection_id: int, source: LogSource, clock: Clock, turn: MergeTurn) -> None:
        self.stage = Stage.NONE
        self._shard = shard
        self._collection_id = collection_id
        self._source = source
        self._clock = clock
        self._turn = turn
        self._is_wanted = True
        self._left: deque[Document] = deque()
        self._rest_s = 0.0

    def __repr__(self) -> str:
        wanted = "wanted" if self._is_wanted else "not wanted"
        return f"ForceMerge(shard {self._shard}, {self.stage.value}, {len(self._left)} documents left, {wanted})"

    def due_at(self, now: float) -> float | None:
        """When its next step is, of an index that has been quiet for long enough. None: there is nothing to do."""
        if self.stage is Stage.FILLING:
            return now
        return self._turn.free_at(now) if self._is_wanted and self.stage is Stage.NONE else None

    def note_change(self) -> None:
        """Something is written, or the index is another one."""
        self.end()
        self._is_wanted = True

    def end(self) -> None:
        """The writer is closed, with its merges, or something else is to be done."""
        self.stage = Stage.NONE
        self._left.clear()
        self._turn.give_back(self, self._clock.monotonic() + self._rest_s)

    def give_up(self) -> None:
        """Let the segments be until the index has changed again."""
        self.end()
        self._is_wanted = False

    def step(self, index: TextIndex) -> None:
        """Do the next piece: look, or write one document. The index holds the log as it is applied. Raises IndexFailed only for
        damage.
        """
        try:
            if self.stage is Stage.NONE:
                self._begin(index)
            elif self.stage is Stage.FILLING:
                self._fill(index)
        except (IndexFailed, KvShardError, OSError) as error:
            logger.warning("segments are not merged", shard=self._shard, index=index.path.name, error=str(error))
            self.give_up()
            if isinstance(error, IndexFailed):
                index.discard_changes()
                if error.is_damage:
                    raise

    def _begin(self, index: TextIndex) -> None:
        segments = index.segments()
        size = sum(each.size_bytes for each in smallest_class(segments))
        if not fillers_wanted(segments) or shutil.disk_usage(index.path).free < FREE_BYTES + 2 * size:
            self.give_up()
            return
        if not self._turn.take(self, self._clock.monotonic()):
            return
        self._rest_s = REST_S + REST_S_PER_MB * size / 1e6
        documents, is_whole = self._documents(index)
        if is_whole:
            index.rewrite(documents)
            self._is_wanted, self.stage = False, Stage.MERGING
        elif len(documents) < fillers_wanted(segments):
            self.give_up()
        else:
            self._left.extend(documents[:FILLERS_MAX])
            self.stage = Stage.FILLING

    def _fill(self, index: TextIndex) -> None:
        index.rewrite([self._left.popleft()])
        if not self._left or not fillers_wanted(index.segments()):
            self._left.clear()
            self._is_wanted, self.stage = False, Stage.MERGING

    def _documents(self, index: TextIndex) -> tuple[Sequence[Document], bool]:
        """Documents that the index holds, as it holds them, and whether these are all of them."""
        scanned = self._source.scan_documents(self._shard, self._collection_id, b"", WHOLE_MAX_DOCUMENTS)
        through = index.indexed_through
        # What was written later is in the log, and will be indexed with the rest of it.
        same = [each for each in scanned if each[2] <= through and len(each[1]) <= FILLER_MAX_BYTES]
        held = index.holds([key for key, *_ in same])
        documents = [(key, value, expires) for (key, value, _, expires), is_held in zip(same, held, strict=True) if is_held]
        return documents, len(documents) == index.searcher().num_docs
