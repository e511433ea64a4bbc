"""Whether an answer is one to what was asked.

Pure: imports only the standard library and other pure files.
"""

from kvshard.errors import Internal
from kvshard.lane_messages import KeysReadReply


def fits(reply: KeysReadReply, count: int) -> bool:
    """Whether a reply's columns are those of so many keys."""
    return len(reply.values) == len(reply.versions) == count and len(reply.expires_at_ms) in (0, count)


def checked(reply: KeysReadReply, count: int) -> KeysReadReply:
    """The answer to a read of so many keys. Raises Internal when it is one to another."""
    if not fits(reply, count):
        raise Internal(f"a read of {count} keys was answered with {len(reply.values)}")
    return reply
