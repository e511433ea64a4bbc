"""Operations on keys, over whatever carries them: the same request again where that is safe, and what is known in the end.

Single operations of concurrent callers travel together (`batcher`); batches, and reads that must tell something about
themselves alone, go as they are.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvshard.client.batch_retry import Written, part_of, passing_failures, put_in, why_to_pause
from kvshard.client.key_answers import checked
from kvshard.client.read_batcher import ReadBatcher
from kvshard.client.retries import told
from kvshard.client.routers import closed_during_call
from kvshard.client.transport import KeyTransport
from kvshard.client.wire import read_failures, write_rest
from kvshard.client.write_batcher import WriteBatcher
from kvshard.client.write_ids import WriteId, WriteIds
from kvshard.errors import Internal, InvalidArgument, KvShardError, in_doubt
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite
from kvshard.scatter.min_versions import MinVersions

if TYPE_CHECKING:
    from kvshard.client.connection import Connection


class KeyCalls:
    """Reads and writes of keys. transport: carries them; it may be exchanged for another one before the first call.

    reads, writes: gather single operations. written: collection -> the states that hold all that was written to it, of
    collections that can be searched; those that a client writes to are few, and each has an entry of some bytes a shard.
    """

    def __init__(self, connection: "Connection", transport: KeyTransport) -> None:
        self.transport = transport
        self.ids = WriteIds(connection.clock)
        self.connection = connection
        self.reads = ReadBatcher(self)
        self.writes = WriteBatcher(self)
        self.written: dict[str, MinVersions] = {}

    def __repr__(self) -> str:
        return f"KeyCalls({self.reads!r}, {self.writes!r}, {self.transport!r})"

    async def read_once(self, request: KeysRead, deadline: float) -> KeysReadReply:
        """Send a read once. Raises a KvShardError, which is Cancelled when the client was closed meanwhile."""
        self.connection.routers.check_open()
        try:
            reply = await self.transport.read(request, deadline)
        except KvShardError as raised:
            error = self._of_this_client(raised)
        else:
            return checked(reply, len(request.keys))
        raise error

    async def write_once(
        self, request: KeysWrite, id: WriteId, deadline: float, positions: Sequence[int] = (), total: int = 0
    ) -> Written:
        """Send a write once, under this id. positions, total: of a part of the write, where it stands among so many keys.

        The errors are those of `read_once`; id is told of none. An answer that makes no sense leaves the write in doubt.
        """
        self.connection.routers.check_open()
        id.attempts += 1
        try:
            reply = await self.transport.write(_with_id(request, id.encoded(positions, total)), deadline)
        except KvShardError as raised:
            error = self._of_this_client(raised)
        else:
            if len(reply.versions) == len(reply.existed) == len(request.keys):
                try:
                    failures, watermarks, token = write_rest(reply.rest)
                    if token:
                        self._note_written(request.collection, token)
                except (Internal, InvalidArgument) as unreadable:
                    raise in_doubt(Internal(unreadable.message)) from None
                self.ids.learn(watermarks)
                return Written(reply.versions, reply.existed, failures)
            error = in_doubt(Internal(f"a write of {len(request.keys)} keys was answered with {len(reply.versions)}"))
        raise error

    async def read(self, request: KeysRead, deadline: float) -> KeysReadReply:
        """Read, and read again until the deadline. Raises a KvShardError; of `is_each_alone` the one key's own, too."""
        connection, attempts = self.connection, 0
        error: KvShardError | None = None
        while True:
            attempts += 1
            router = connection.current
            try:
                reply = await self.read_once(request, deadline)
                failures = read_failures(reply.rest) if request.is_each_alone else {}
                if not failures:
                    return reply
                error = told(next(iter(failures.values())), error)
            except KvShardError as raised:
                error = told(raised, error)
            await connection.pause_or_raise(error, router, is_repeatable=True, attempts=attempts, deadline=deadline)

    async def write(self, request: KeysWrite, deadline: float) -> Written:
        """Write a batch under an id of its own, and again until the deadline: each key's operation takes effect once.

        Keys that fail for a while are sent again, the others not. Raises a KvShardError that hits the whole, with
        details.maybe_applied when it may have taken effect, in whichever of its sendings.
        """
        connection = self.connection
        with self.ids.new() as id:
            written = await self._send(request, id, deadline)
            while failed := passing_failures(written):
                error = id.failed(why_to_pause(list(failed.values())))
                try:
                    await connection.pause_or_raise(error, None, is_repeatable=True, attempts=id.attempts, deadline=deadline)
                except KvShardError:
                    break  # Each key says for itself why.
                part, positions = part_of(request, list(failed)), list(failed)
                try:
                    again = await self._send(part, id, deadline, positions, len(request.keys))
                except KvShardError as raised:
                    put_in(written, failed, Written.failed(raised, len(failed)))
                    break
                put_in(written, failed, again)
        return written

    async def _send(
        self, request: KeysWrite, id: WriteId, deadline: float, positions: Sequence[int] = (), total: int = 0
    ) -> Written:
        """Send a write, or a part of it, until there is an answer."""
        connection = self.connection
        error: KvShardError | None = None
        while True:
            router = connection.current
            try:
                return await self.write_once(request, id, deadline, positions, total)
            except KvShardError as raised:
                error = told(id.failed(raised), error)
            await connection.pause_or_raise(error, router, is_repeatable=True, attempts=id.attempts, deadline=deadline)

    def _note_written(self, collection: str, token: bytes) -> None:
        self.written.setdefault(collection, MinVersions()).want_all(MinVersions.decode(token, "written"))

    async def close(self) -> None:
        """Give up what is under way, and close the connections. A second close does nothing."""
        await self.reads.close()
        await self.writes.close()
        await self.transport.close()

    def _of_this_client(self, error: KvShardError) -> KvShardError:
        """What broke because the client was closed says so."""
        if self.connection.routers.is_closed:
            return closed_during_call(maybe_applied=error.details.maybe_applied)
        return error


def _with_id(request: KeysWrite, id: bytes) -> KeysWrite:
    """The request under this id. Written out, since `dataclasses.replace` takes four times as long, for every single write."""
    columns = request.keys, request.values, request.ttl_ms, request.conditions
    return KeysWrite(request.collection, *columns, request.refresh, id, request.is_each_alone, request.next_refresh)
