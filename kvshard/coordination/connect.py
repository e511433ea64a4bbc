"""Which coordinator a URL names."""

from pathlib import Path

from kvshard.clock import Clock
from kvshard.coordination.base import Coordinator
from kvshard.coordination.embedded import EmbeddedCoordinator
from kvshard.errors import ErrorDetails, InvalidArgument

_EMBEDDED = "sqlite://"
_ETCD = "etcd://"


def connect(url: str, clock: Clock) -> Coordinator:
    """A handle on the coordinator at a URL. Nothing is opened before the first call.

    `sqlite:///absolute/path` is the embedded one, `etcd://host:port,host:port` etcd (all of its form: `etcd_url.SYNTAX`).
    Raises InvalidArgument for every other URL.
    """
    if url.startswith(_ETCD):
        # Only here, since it brings grpc and generated code along.
        from kvshard.coordination.etcd import EtcdCoordinator
        from kvshard.coordination.etcd_url import parse_etcd_url

        return EtcdCoordinator(parse_etcd_url(url), clock)
    path = url.removeprefix(_EMBEDDED)
    if path == url or not path.startswith("/") or path.endswith("/"):
        message = f"coordinator {url!r} is not supported: use sqlite:///absolute/path/of/coordinator.db or etcd://host:port"
        raise InvalidArgument(message, ErrorDetails(field="coordinator"))
    return EmbeddedCoordinator(Path(path), clock)
