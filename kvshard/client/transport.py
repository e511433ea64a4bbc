"""How key operations leave the client: the interface between what wants keys and what carries them.

A transport makes one attempt. Who calls it (`Connection`) decides what a failure means and whether the same request, with the
same id, is sent again; so a transport neither repeats a write nor hides that one may have been done. Two exist: `RouterLanes`
asks a router, and the direct client asks the leaves themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from kvshard.errors import KvShardError
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite, KeysWriteReply

ReadHeard: TypeAlias = Callable[[KeysReadReply | KvShardError | None], None]
"""Is told what became of a read that was started: once, never while it is being started, not at all if it was taken back. None:
it has to be asked in the other way, by `read`. It must be quick."""

TakeBack: TypeAlias = Callable[[], object]
"""Takes a read back that was started. Of no effect once it was answered."""


class KeyTransport(ABC):
    """Carries reads and writes of keys. It opens what it needs at the first call, inside the event loop that makes it.

    What every implementation owes:

    - The answer's columns are as long as the request's keys; what is rare stands in `rest`, as `lane_messages` says.
    - It returns or raises at the deadline, an instant on the client's monotonic clock, at the latest a few milliseconds later.
    - Every failure is a KvShardError. One of a write has details.maybe_applied unless the write is known not to have been done
      by this attempt.
    - A call whose task is cancelled is taken back at the far end as far as that is possible, and leaves nothing behind.
    - A request is not kept, and not changed, after its call has ended.
    """

    @abstractmethod
    async def read(self, request: KeysRead, deadline: float) -> KeysReadReply:
        """Read keys. Raises a KvShardError, of which `is_each_alone` requests have one only if it hits all their keys."""

    def begin_read(self, request: KeysRead, deadline: float, heard: ReadHeard) -> TakeBack | None:
        """Send a read without awaiting anything: no task is needed for it, and its answer wakes its callers at once.

        None: that cannot be now, or never; `read` waits until it can. The first attempt of a read is made so, where possible.
        """
        return None

    @abstractmethod
    async def write(self, request: KeysWrite, deadline: float) -> KeysWriteReply:
        """Write keys; what the reply says was done is durable. Raises a KvShardError when nothing is known of any key."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections. Calls under way fail with Unavailable, later ones too. A second close does nothing."""
