"""Single operations for callers who wait in their own way: they bring what is told the outcome, and need no task for it.

`Keyspace` awaits futures; the synchronous client's threads wait for locks. What both need lies here.
"""

from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeAlias, cast

from kvshard.client.batching import Caller
from kvshard.client.checks import check_condition, check_refresh, check_timeout, ttl_milliseconds
from kvshard.client.codecs import ValueCodec, key_decoder
from kvshard.client.read_batcher import Found
from kvshard.client.results import Item, K, V
from kvshard.client.write_batching import WriteCall
from kvshard.model import ABSENT, Refresh

if TYPE_CHECKING:
    from kvshard.client.connection import Connection
    from kvshard.client.keyspace import Keyspace

ReadHow: TypeAlias = tuple[bytes, bool, float]
"""Options as they travel, whether a single read with them may share a frame with others, and the timeout in seconds."""


class WriteHow(NamedTuple):
    """How a single write is done, checked: ttl_ms and condition as in `KeysWrite`; timeout None: as the client has it."""

    ttl_ms: int
    condition: int | None
    refresh: Refresh
    timeout: float | None

    @classmethod
    def of(
        cls,
        ttl: float | None = None,
        if_version: int | None = None,
        if_absent: bool = False,
        refresh: Refresh = False,
        timeout: float | None = None,
    ) -> Self:
        """Of the parameters of `put`. Raises InvalidArgument."""
        checked = None if timeout is None else check_timeout(timeout)
        return cls(ttl_milliseconds(ttl), condition_of(if_version, if_absent), check_refresh(refresh), checked)


class SingleCalls(Generic[K, V]):
    """Single operations on the keys of one collection. how: reads are done so; of writes, the timeout counts too."""

    def __init__(self, connection: "Connection", name: str, how: ReadHow, keys: type[K], values: ValueCodec[V]) -> None:
        self._name = name
        self._how = how
        self._kind: type[K] = keys
        self._decode_key = key_decoder(keys)
        self._decode = values.decode
        self._now = connection.clock.monotonic
        self._keys = connection.keys

    def __repr__(self) -> str:
        return f"SingleCalls({self._name!r}, {self._keys!r})"

    @property
    def may_ask(self) -> bool:
        """Whether `ask` does what `Keyspace.get` does: a read, as the client does them, tells nothing of its own."""
        return self._how[1]

    def ask(self, key: bytes, caller: Caller) -> None:
        """Begin a read, as the client does them, for a caller who waits in his own way, and hears what it `Found`."""
        encoded, _, timeout = self._how
        now = self._now()
        self._keys.reads.ask(self._name, encoded, key, caller, now + timeout, now)

    def ask_write(self, key: bytes, value: bytes | None, how: WriteHow, caller: Caller) -> None:
        """Begin a write, or a delete (None), for a caller who waits in his own way, and hears what was `Done`."""
        ttl_ms, condition, refresh, timeout = how
        now = self._now()
        deadline = now + (self._how[2] if timeout is None else timeout)
        call = WriteCall(key, value, ttl_ms, condition, refresh, caller, deadline)
        self._keys.writes.ask(self._name, call, now)

    def give_up(self, caller: Caller, *, is_write: bool) -> None:
        """A caller of `ask` or `ask_write`, done without an outcome, does not want one any more."""
        (self._keys.writes if is_write else self._keys.reads).give_up(caller)

    def item(self, key: str | bytes, wire: bytes, found: Found) -> Item[K, V] | None:
        """What a read of `ask` has found, as `Keyspace.get` returns it. From any thread."""
        if found is None:
            return None
        given = cast(K, key) if type(key) is self._kind else self._decode_key(wire)
        return Item(given, self._decode(found[0]), found[1], found[2])


def condition_of(if_version: int | None, if_absent: bool) -> int | None:
    """The condition of a write as it travels. Raises InvalidArgument."""
    check_condition(if_version, if_absent)
    return ABSENT if if_absent else if_version


def single_calls_of(keyspace: "Keyspace[K, V]") -> SingleCalls[K, V]:
    """Single operations on the same keys, as the keyspace does them."""
    return keyspace._single
