"""Collapsed searches: only the first hit of each value of a field, and how many matches have that value.

Documents without a value are one group. A value is on one page only, wherever its other documents lie in the order: the token
of a page carries a digest of each value that was shown. A digest that two values share (one chance in 10^12 for the deepest
search) hides the later one.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from kvshard.model import ShardHit, ShardSearchReply, SortValue

DIGEST_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class GroupSize:
    """How many matches have a value; at least as many if not is_exact."""

    value: SortValue
    count: int
    is_exact: bool


def group_digest(value: SortValue) -> bytes:
    """What tokens remember of a value."""
    return blake2b(f"{type(value).__name__} {value}".encode(), digest_size=DIGEST_BYTES).digest()


def shown_digests(shown: bytes) -> set[bytes]:
    """The digests that stand one after the other."""
    return {shown[at : at + DIGEST_BYTES] for at in range(0, len(shown), DIGEST_BYTES)}


def shown_after(shown: bytes, hits: Iterable[ShardHit]) -> bytes:
    """The digests when these hits were shown as well."""
    return shown + b"".join(group_digest(hit.group) for hit in hits)


def group_sizes(hits: Iterable[ShardHit], replies: Mapping[int, ShardSearchReply]) -> list[GroupSize]:
    """The size of each hit's group over all shards.

    A shard counts each group of which it delivers a hit, exactly. One that delivered all it had has none of the others; one
    that has more may have some.
    """
    counts = [{hit.group: hit.group_size for hit in reply.hits} for reply in replies.values()]
    open_ended = [reply.has_more for reply in replies.values()]
    sizes: list[GroupSize] = []
    for hit in hits:
        known = [found.get(hit.group) for found in counts]
        is_exact = not any(count is None and has_more for count, has_more in zip(known, open_ended, strict=True))
        sizes.append(GroupSize(hit.group, sum(count or 0 for count in known), is_exact))
    return sizes
