"""Which process has a loopback TCP connection: the kernel tells the socket's inode, and /proc who holds it."""

import contextlib
import os
import pathlib
import socket
import struct

NOBODY = ""

_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI")
_ID = struct.Struct(">HH16s16s")
_ID_REST = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # Any interface, no cookie.
_LOOPBACK = socket.inet_aton("127.0.0.1").ljust(16, b"\0")
_INODE = struct.Struct("=I")
_INODE_AT = _HEADER.size + 4 + 48 + 16


def owner_of(local_port: int, remote_port: int, pids: dict[str, int]) -> str:
    """Which of these processes (name -> pid) has the socket from one port of 127.0.0.1 to another; '' if none."""
    inode = _asked(local_port, remote_port) or _looked_up(local_port, remote_port)
    if inode is None:
        return NOBODY
    wanted = f"socket:[{inode}]"
    for name, pid in pids.items():
        folder = f"/proc/{pid}/fd"
        with contextlib.suppress(OSError):  # It may be gone.
            for entry in os.listdir(folder):
                with contextlib.suppress(OSError):
                    if os.readlink(f"{folder}/{entry}") == wanted:
                        return name
    return NOBODY


def _asked(local_port: int, remote_port: int) -> int | None:
    """The inode, from the kernel's lookup of one connection: a tenth of a millisecond, however many there are."""
    query = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    query += _ID.pack(local_port, remote_port, _LOOPBACK, _LOOPBACK) + _ID_REST
    header = _HEADER.pack(_HEADER.size + len(query), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as link:  # 4: NETLINK_SOCK_DIAG
            link.settimeout(1.0)
            link.send(header + query)
            answer = link.recv(4096)
    except (OSError, AttributeError):
        return None
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None
    return _INODE.unpack_from(answer, _INODE_AT)[0] or None


def _looked_up(local_port: int, remote_port: int) -> int | None:
    """The same from the list of all connections, which takes long where there are thousands."""
    local, remote = f":{local_port:04X}", f":{remote_port:04X}"
    # gRPC dials from IPv6 sockets, also to IPv4 addresses.
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in pathlib.Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(local) and fields[2].endswith(remote):
                    return int(fields[9]) or None
    return None
