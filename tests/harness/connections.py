"""The connections that this process has: those over TCP by the port that they lead to, and all sockets."""

import contextlib
import os
import pathlib
from collections import Counter

_ESTABLISHED = "01"


def connections_by_port() -> Counter[int]:
    """How many connections of this process lead to each remote port, as the kernel has them."""
    own = open_sockets()
    found: Counter[int] = Counter()
    # gRPC dials from IPv6 sockets, also to IPv4 addresses.
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _ESTABLISHED and f"socket:[{fields[9]}]" in own:
                found[int(fields[2].rpartition(":")[2], 16)] += 1
    return found


def open_sockets() -> set[str]:
    """Every socket of this process, of whichever kind."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # The listing's own descriptor is gone by now.
            target = os.readlink(f"/proc/self/fd/{entry}")
            if target.startswith("socket:"):
                found.add(target)
    return found
