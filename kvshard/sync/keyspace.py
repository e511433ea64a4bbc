"""The keys of one collection for threads: point operations, batches and scans, over any kind of value."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Generic, TypeVar, Unpack

from kvshard.client.batch_results import DeleteResults, GetResults, PutResults
from kvshard.client.checks import key_bytes
from kvshard.client.client import Client as AsyncClient
from kvshard.client.codecs import ValueCodec
from kvshard.client.keyspace import Items
from kvshard.client.keyspace import Keyspace as AsyncKeyspace
from kvshard.client.options import ReadOverrides
from kvshard.client.read_batcher import Found
from kvshard.client.results import Item, K, Timing, V
from kvshard.client.scan import ScanRange
from kvshard.client.single_calls import WriteHow, single_calls_of
from kvshard.client.write_batcher import Done
from kvshard.model import Refresh
from kvshard.sync.loop_thread import AskedCall, Call
from kvshard.sync.scan import Scan
from kvshard.sync.source import Source

T = TypeVar("T")


class Keyspace(Generic[K, V]):
    """The keys of one collection, as `kvshard.Keyspace` has them. Every method blocks until its outcome is there."""

    def __init__(
        self,
        source: Source[K],
        name: str,
        values: ValueCodec[V],
        find: Callable[[AsyncClient[K]], AsyncKeyspace[K, V]],
        find_raw: Callable[[AsyncClient[K]], AsyncKeyspace[K, bytes]],
    ) -> None:
        """find, find_raw: the same keys of an asyncio client, with their values as they are here, and as bytes."""
        self._source = source
        self._name = name
        self._values = values
        self._find = find
        self._find_raw = find_raw
        self._found: tuple[AsyncClient[K], AsyncKeyspace[K, V]] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, {self._source!r})"

    def _there(self, client: AsyncClient[K]) -> AsyncKeyspace[K, V]:
        found = self._found
        if found is None or found[0] is not client:
            found = self._found = client, self._find(client)
        return found[1]

    def _run(self, begin: Callable[[AsyncKeyspace[K, V]], Awaitable[T]]) -> T:
        return self._source.run(lambda client: begin(self._there(client)))

    def put(
        self,
        key: str | bytes,
        value: V,
        *,
        ttl: float | None = None,
        if_version: int | None = None,
        if_absent: bool = False,
        refresh: Refresh = False,
        timeout: float | None = None,
    ) -> int:
        """Write a key and return its new version; durable when it returns.

        ttl: seconds after which the key vanishes. if_version: only if the key has this version; if_absent: only if there is no
        such key; VersionConflict otherwise. refresh: return only when a search can see the write; "wait": after the next
        refresh of its index in turn, without one of its own, which is cheaper where many write so. A write that failed is
        repeated under the same id, so that it takes effect once; when the time is over before its outcome is known, the error
        says details.maybe_applied.
        """
        wire, encoded = key_bytes(key), self._values.encode(value)
        return self._write(wire, encoded, WriteHow.of(ttl, if_version, if_absent, refresh, timeout))[0]

    def get(self, key: str | bytes, **read: Unpack[ReadOverrides]) -> Item[K, V] | None:
        """Read a key; None when it is absent."""
        if read:
            return self._run(lambda there: there.get(key, **read))
        wire = key_bytes(key)

        def call_of(client: AsyncClient[K]) -> Call[Item[K, V] | Found]:
            there = self._there(client)
            single = single_calls_of(there)
            if not single.may_ask:
                return Call(lambda: there.get(key))
            return AskedCall(partial(single.ask, wire), partial(single.give_up, is_write=False))

        found = self._source.make(call_of)
        if isinstance(found, tuple):
            assert self._found is not None, "the call has looked for them"
            return single_calls_of(self._found[1]).item(key, wire, found)
        return found

    def explain_get(self, key: str | bytes, **read: Unpack[ReadOverrides]) -> tuple[Item[K, V] | None, Timing]:
        """Read a key and tell where the time went, also when it is absent."""
        return self._run(lambda there: there.explain_get(key, **read))

    def delete(
        self, key: str | bytes, *, if_version: int | None = None, refresh: Refresh = False, timeout: float | None = None
    ) -> bool:
        """Delete a key; True if it was there. if_version: only if it has this version, VersionConflict otherwise."""
        return self._write(key_bytes(key), None, WriteHow.of(None, if_version, False, refresh, timeout))[1]

    def _write(self, wire: bytes, value: bytes | None, how: WriteHow) -> Done:
        def call_of(client: AsyncClient[K]) -> Call[Done]:
            single = single_calls_of(self._there(client))
            return AskedCall(partial(single.ask_write, wire, value, how), partial(single.give_up, is_write=True))

        return self._source.make(call_of)

    def get_many(self, keys: Iterable[str | bytes], **read: Unpack[ReadOverrides]) -> GetResults[K, V]:
        """Read many keys: in their order the item, None where a key is absent, or the error that kept it from being read."""
        wanted = list(keys)  # Here: what the program brings must not run in another thread, which everybody waits for.
        return self._run(lambda there: there.get_many(wanted, **read))

    def put_many(
        self,
        items: Items[V],
        *,
        ttl: float | None = None,
        if_absent: bool = False,
        refresh: Refresh = False,
        timeout: float | None = None,
    ) -> PutResults[K]:
        """Write many keys, in order where one occurs twice. Each key has a result of its own: its new version or an error.

        What keeps within the service's limits goes as one batch, larger ones are cut. An error of the whole call is raised when
        it hits the first piece; later it stands in the place of the keys concerned, beside the results of those written before.
        """
        given: Items[V] = dict(items) if isinstance(items, Mapping) else list(items)
        return self._run(lambda there: there.put_many(given, ttl=ttl, if_absent=if_absent, refresh=refresh, timeout=timeout))

    def delete_many(
        self, keys: Iterable[str | bytes], *, refresh: Refresh = False, timeout: float | None = None
    ) -> DeleteResults[K]:
        """Delete many keys. Each has a result of its own: whether it was there, or an error; see put_many."""
        wanted = list(keys)
        return self._run(lambda there: there.delete_many(wanted, refresh=refresh, timeout=timeout))

    def scan(
        self,
        *,
        prefix: str | bytes | None = None,
        start: str | bytes | None = None,
        end: str | bytes | None = None,
        limit: int | None = None,
        keys_only: bool = False,
        resume: bytes | None = None,
        **read: Unpack[ReadOverrides],
    ) -> Scan[K, V]:
        """Iterate over keys in byte order, over all shards: `for item in kv.scan(prefix="user:")`.

        start is included, end is not. limit: at most this many. resume: the `.token` of an earlier scan with the same range;
        it goes on behind the last key given. timeout: how long the scan may go without progress, not how long it may take.
        """
        wanted = ScanRange.of(self._name, prefix=prefix, start=start, end=end, limit=limit, keys_only=keys_only)
        thread, scan = self._source.begin(
            lambda client: self._find_raw(client).scan(
                prefix=prefix, start=start, end=end, limit=limit, keys_only=keys_only, resume=resume, **read
            )
        )
        return Scan(self._source, thread, scan, wanted, self._values, resume or b"")
