"""Which coordinator a URL names."""

from pathlib import Path

from kvshard.clock import Clock
from kvshard.coordination.base import Coordinator
from kvshard.coordination.embedded import EmbeddedCoordinator
from kvshard.errors import ErrorDetails, InvalidArgument

_EMBEDDED = "sqlite://"


def connect(url: str, clock: Clock) -> Coordinator:
    """A handle on the coordinator at a URL. Nothing is opened before the first call.

    `sqlite:///absolute/path` is the embedded one. Raises InvalidArgument for every other URL.
    """
    path = url.removeprefix(_EMBEDDED)
    if path == url or not path.startswith("/") or path.endswith("/"):
        message = f"coordinator {url!r} is not supported: use sqlite:///absolute/path/of/coordinator.db"
        raise InvalidArgument(message, ErrorDetails(field="coordinator"))
    return EmbeddedCoordinator(Path(path), clock)
