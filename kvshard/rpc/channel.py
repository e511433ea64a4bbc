"""How channels and servers are made: every gRPC option of the project stands here, with its reason."""

from collections.abc import Sequence

import grpc
import grpc.aio

from kvshard.errors import FailedPrecondition
from kvshard.limits import MESSAGE_MAX_BYTES
from kvshard.rpc.accepting import server_ahead
from kvshard.rpc.keepalive import IMPATIENCE, PATIENCE, Keepalive

METADATA_MAX_BYTES = 32 * 1024
"""Bound of headers and trailers: an error with its details (see status.py, which keeps them under 8 KiB) and room to spare."""

_BOTH_ENDS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_metadata_size", METADATA_MAX_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * METADATA_MAX_BYTES),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def _keepalive_options(keepalive: Keepalive) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.keepalive_time_ms", int(keepalive.idle_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive.timeout_s * 1000)),
        # The ping has a timeout of its own: grpcio 1.75 waits its default of 60 s, whatever the keepalive's one says.
        ("grpc.http2.ping_timeout_ms", int(keepalive.timeout_s * 1000)),
    )


CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *_BOTH_ENDS,
    # Retries and hedges are decided by kvshard, within a budget; gRPC's own would multiply them.
    ("grpc.enable_retries", 0),
    # Each channel owns its connection and its back-off: a fresh channel tries at once, whatever an older one ran into.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A proxy of the environment is meant for the web, not for the cluster.
    ("grpc.enable_http_proxy", 0),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_BOTH_ENDS,
    *_keepalive_options(PATIENCE),
    # Accept the pings above, and such of clients that ping twice as often; else the server closes their connection.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
)


def aio_channel(
    address: str, credentials: grpc.ChannelCredentials | None = None, *, is_internal: bool = False
) -> grpc.aio.Channel:
    """A channel to `host:port`, encrypted if there are credentials. It connects on first use; the caller must close it.

    is_internal: between a cluster's own processes, where one that is gone is to be noticed soon.
    """
    options = (*CHANNEL_OPTIONS, *_keepalive_options(IMPATIENCE if is_internal else PATIENCE))
    if credentials is not None:
        return grpc.aio.secure_channel(address, credentials, options=options)
    return grpc.aio.insecure_channel(address, options=options)


def aio_server(*, has_shared_port: bool = False, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> grpc.aio.Server:
    """A server without services and ports yet.

    has_shared_port: several processes listen on one port and the kernel spreads the connections (SO_REUSEPORT). Off by default,
    since it would hide that the port is in use.
    """
    options = (*SERVER_OPTIONS, ("grpc.so_reuseport", int(has_shared_port)))
    return server_ahead(interceptors=tuple(interceptors), options=options)


def bind(server: grpc.aio.Server, listen: str) -> str:
    """Make the server listen on `host:port` (port 0: any free one). Returns the real `host:port`.

    Raises FailedPrecondition when that address cannot be had, most often because the port is in use.
    """
    host, separator, _ = listen.rpartition(":")
    if not separator or not host:
        raise FailedPrecondition(f"not an address to listen on: {listen!r}, expected host:port")
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if port == 0:
        raise FailedPrecondition(f"cannot listen on {listen}: the port is in use or the address is not of this machine")
    return f"{host}:{port}"
