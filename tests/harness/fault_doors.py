"""The doors of one process, each behind a fault proxy: the one for gRPC and the one for lanes on plain connections.

What the network does to a process it does to both.
"""

import asyncio
from collections.abc import Callable, Iterable

from harness.cluster import free_port
from harness.fault_proxy import ANYBODY, Direction, Fault, FaultProxy


class FaultDoors:
    """`arguments` make a leaf or a router stand behind them. port: at which it is dialled; 0: any."""

    def __init__(self, who: Callable[[int, int], str] = lambda local, remote: ANYBODY, port: int = 0) -> None:
        self.ports = free_port(), free_port()
        self._proxies = FaultProxy(who), FaultProxy(who)
        for proxy, door, upstream in zip(self._proxies, (port or free_port(), free_port()), self.ports, strict=True):
            proxy.port = door
            proxy.upstream = ("127.0.0.1", upstream)

    def __repr__(self) -> str:
        return f"FaultDoors{self._proxies}"

    @property
    def address(self) -> str:
        """Where it is dialled."""
        return self._proxies[0].address

    @property
    def lane_port(self) -> int:
        """Where its lanes are dialled."""
        return self._proxies[1].port

    @property
    def lane_arguments(self) -> tuple[str, ...]:
        """For its command line: where its lanes are, and where they are dialled."""
        return ("--lane-port", str(self.ports[1]), "--advertise-lane-port", str(self.lane_port))

    @property
    def sources(self) -> list[str]:
        """Who is connected."""
        return sorted(source for proxy in self._proxies for source in proxy.sources)

    async def start(self) -> None:
        """Open both."""
        for proxy in self._proxies:
            await proxy.start()

    async def close(self) -> None:
        """Close both, and what went through them."""
        await asyncio.gather(*(proxy.close() for proxy in self._proxies))

    def set(self, fault: Fault, source: str = ANYBODY, directions: Iterable[Direction] = Direction) -> None:
        """See FaultProxy."""
        directions = list(directions)
        for proxy in self._proxies:
            proxy.set(fault, source, directions)

    def reset(self, source: str = ANYBODY) -> None:
        """See FaultProxy."""
        for proxy in self._proxies:
            proxy.reset(source)

    def half_open(self, source: str = ANYBODY) -> None:
        """See FaultProxy."""
        for proxy in self._proxies:
            proxy.half_open(source)

    def heal(self) -> None:
        """See FaultProxy."""
        for proxy in self._proxies:
            proxy.heal()
