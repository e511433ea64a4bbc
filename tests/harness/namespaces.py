"""Leaves in network namespaces of their own, joined by a bridge: a link that is down is a network that is really gone.

Needs root, `ip`, and a kernel that lets us; `why_not` says what is missing.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.fleet import ROUTER, Fleet

NETWORK = "198.18.77"
"""Of the range set apart for tests of networks (RFC 2544)."""

PORT = 7001
PROBE_TIMEOUT_S = 3.0
FAILURE_TIMEOUT_S = 1.0
MARK = "kvs"

PROBE = f"""
import socket, sys
try:
    socket.create_connection((sys.argv[1], 1), {PROBE_TIMEOUT_S})
except ConnectionRefusedError:
    pass  # Somebody is there to refuse it.
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Namespaces:
    """A bridge, and for each name a namespace with one link to it."""

    def __init__(self, names: list[str]) -> None:
        self.bridge = f"{MARK}{os.getpid()}b"
        self.numbers = {name: number for number, name in enumerate(names, start=1)}

    def namespace(self, name: str) -> str:
        return f"{MARK}{os.getpid()}n{self.numbers[name]}"

    def link(self, name: str) -> str:
        return f"{MARK}{os.getpid()}v{self.numbers[name]}"

    def address(self, name: str) -> str:
        return f"{NETWORK}.{self.numbers[name]}"

    def set_up(self) -> None:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("address", "add", f"{NETWORK}.254/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for name in self.numbers:
            inside, link = self.namespace(name), self.link(name)
            ip("netns", "add", inside)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", inside)
            ip("link", "set", link, "master", self.bridge)
            ip("link", "set", link, "up")
            ip("-n", inside, "link", "set", "lo", "up")
            ip("-n", inside, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            ip("-n", inside, "link", "set", "eth0", "up")

    def probe(self) -> None:
        """Raise CalledProcessError unless one namespace reaches another, and us."""
        first, second = list(self.numbers)[:2]
        for target in (self.address(second), f"{NETWORK}.254"):
            command = ["ip", "netns", "exec", self.namespace(first), sys.executable, "-c", PROBE, target]
            subprocess.run(command, check=True, capture_output=True, text=True)

    def tear_down(self) -> None:
        for name in self.numbers:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", self.namespace(name))
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", self.bridge)

    def cut(self, name: str) -> None:
        ip("link", "set", self.link(name), "down")

    def mend(self, name: str) -> None:
        ip("link", "set", self.link(name), "up")


@contextlib.contextmanager
def namespaces(names: list[str]) -> Iterator[Namespaces | str]:
    """Ready to use; or the reason why there can be none here."""
    made = Namespaces(names)
    if not shutil.which("ip"):
        yield "there is no `ip` here"
        return
    try:
        try:
            made.set_up()
            made.probe()
        except subprocess.CalledProcessError as error:
            why = error.stderr.strip().splitlines()[-1:]
            yield f"no network namespaces here: {' '.join(error.cmd[:6])}: {''.join(why)}"
            return
        yield made
    finally:
        made.tear_down()


class NamespacedFleet(Fleet):
    """Leaves in namespaces, the router outside; the coordinator's file is reached by all, whatever the network does."""

    def __init__(self, folder: pathlib.Path, network: Namespaces) -> None:
        self.network = network
        super().__init__(folder, shards=4, leaf_arguments=("--failure-timeout", str(FAILURE_TIMEOUT_S)))

    def listen_arguments(self, name: str) -> tuple[str, ...]:
        return ("--listen", f"{self.network.address(name)}:{PORT}")

    def prefix(self, name: str) -> tuple[str, ...]:
        return () if name == ROUTER else ("ip", "netns", "exec", self.network.namespace(name))
