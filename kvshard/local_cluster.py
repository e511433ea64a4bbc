"""A whole cluster on this machine: its data directory, its ports, its processes.

May live here: what `kvshard up` and `kvshard demo` share, from the plan of a cluster to its running. Children are kept alive by
`kvshard/supervisor.py`; the map is written through `kvshard/coordination/`.
"""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, InvalidMap, Leaf
from kvshard.coordination.base import Coordinator, CoordinatorUnavailable
from kvshard.coordination.connect import connect
from kvshard.coordination.mapstore import BootstrapPlan, assemble, bootstrap
from kvshard.coordination.mapwriter import PREFIX as MAP_PREFIX
from kvshard.errors import DataLoss, ErrorDetails, FailedPrecondition, InvalidArgument, Unavailable
from kvshard.hedge_settings import AUTO, router_settings
from kvshard.limits import (
    CACHE_MAX_MB,
    FAILURE_TIMEOUT_MAX_S,
    FAILURE_TIMEOUT_MIN_S,
    FAILURE_TIMEOUT_S,
    HEAL_AFTER_MAX_S,
    HEAL_AFTER_MIN_S,
    HEAL_AFTER_S,
    REFRESH_INTERVAL_MAX_S,
    REFRESH_INTERVAL_MIN_S,
    REFRESH_INTERVAL_S,
    SHARDS_MAX,
    check_length,
)
from kvshard.own_leaves import note_own_leaves, own_leaves, removed_leaves
from kvshard.router_workers import RouterWorkers
from kvshard.supervision import HASTY_STOP_SIGNAL
from kvshard.supervisor import ChildSpec, Echo, Supervisor
from kvshard.tail.hedging import ATTEMPTS_MAX
from kvshard.workers import ROUTER, WORKERS_MAX, check_workers

LEAVES_MAX = 64
"""Each leaf is a process of up to 90 MB and wants a core; more of them belong on more machines."""

DEFAULT_LEAVES = 3
DEFAULT_SHARDS = 8
DEFAULT_REPLICAS = 3
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What was asked for. None: as the data directory has it, or the default for a new one.

    metrics_port: the router's, each worker of which has one; the leaves take the ports after them. None: no metrics. port 0:
    any free one. coordinator: URL of the coordinator; None: the embedded one, in the data directory. heal_after_s,
    failure_timeout_s, refresh_interval_s: of the leaves. are_faults_allowed: faults may be injected into the leaves. hedge,
    hedge_budget, hedge_attempts: the router's flags. workers: router processes that share the port. cache_mb: of each leaf's
    cache of keys; 0: there is none; None: what a leaf has by itself.
    """

    data_dir: Path
    leaves: int | None = None
    shards: int | None = None
    replicas: int | None = None
    port: int = 7700
    metrics_port: int | None = None
    log_json: bool = False
    log_level: str = "info"
    coordinator: str | None = None
    heal_after_s: float = HEAL_AFTER_S
    failure_timeout_s: float = FAILURE_TIMEOUT_S
    refresh_interval_s: float = REFRESH_INTERVAL_S
    are_faults_allowed: bool = False
    hedge: str = AUTO
    hedge_budget: str = AUTO
    hedge_attempts: int = ATTEMPTS_MAX
    workers: int = 1
    cache_mb: int | None = None

    def check(self) -> None:
        """Raise InvalidArgument for what can be seen to be wrong before anything is touched."""
        _check_range("leaves", self.leaves, 1, LEAVES_MAX)
        _check_range("shards", self.shards, 1, SHARDS_MAX)
        _check_range("port", self.port, 0, 65_535)
        _check_range("replicas", self.replicas, 1, self.leaves or LEAVES_MAX)
        check_workers(self.workers)
        _check_range("metrics-port", self.metrics_port, 1, 65_535 - LEAVES_MAX - WORKERS_MAX)
        _check_range("cache-mb", self.cache_mb, 0, CACHE_MAX_MB)
        check_length("heal-after", self.heal_after_s, HEAL_AFTER_MIN_S, HEAL_AFTER_MAX_S)
        check_length("failure-timeout", self.failure_timeout_s, FAILURE_TIMEOUT_MIN_S, FAILURE_TIMEOUT_MAX_S)
        check_length("refresh-interval", self.refresh_interval_s, REFRESH_INTERVAL_MIN_S, REFRESH_INTERVAL_MAX_S)
        router_settings(self.hedge, self.hedge_budget, self.hedge_attempts)

    def ports(self, leaves: int) -> list[int]:
        """The fixed ports that a cluster of so many leaves will listen on."""
        metrics = [] if self.metrics_port is None else [self.metrics_port + number for number in range(leaves + self.workers)]
        if self.port in metrics:
            raise InvalidArgument(
                f"port {self.port} would serve both clients and metrics ({metrics[0]} to {metrics[-1]})",
                ErrorDetails(field="metrics-port"),
            )
        return [port for port in (self.port, *metrics) if port]


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidArgument(f"--{name} must be between {low} and {high}, not {value}", ErrorDetails(field=name, limit=high))


class DirectoryLock:
    """Exclusive use of a data directory, for as long as this process lives; the kernel ends it whatever happens."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (FileExistsError, NotADirectoryError):
            raise InvalidArgument(f"{directory} is not a directory", ErrorDetails(field="data-dir")) from None
        except OSError as error:
            raise Unavailable(f"the data directory {directory} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise Unavailable(
                f"the data directory {directory} is in use by process {owner or 'unknown'}; stop that one, or choose another "
                "with --data-dir"
            ) from None
        os.truncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others use the directory. The file stays: removing it would let two processes lock two files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def check_ports(ports: list[int]) -> None:
    """Raise Unavailable when one of the ports cannot be listened on."""
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As the server does it: connections of a predecessor that linger in TIME_WAIT are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
                raise Unavailable(f"port {port} on {HOST} {why}; choose another with --port or --metrics-port") from None


async def open_map(coordinator: Coordinator, plan: ClusterPlan) -> ClusterMap:
    """The cluster's map, bootstrapped on the first start. Raises InvalidArgument when the plan asks for another cluster."""
    leaves = tuple(Leaf(f"leaf-{number}") for number in range(1, (plan.leaves or DEFAULT_LEAVES) + 1))
    try:
        replicas = plan.replicas or min(DEFAULT_REPLICAS, len(leaves))
        await bootstrap(coordinator, BootstrapPlan(leaves, shards=plan.shards or DEFAULT_SHARDS, replicas=replicas))
        current = assemble((await coordinator.get_prefix(MAP_PREFIX)).items)
    except CoordinatorUnavailable as error:
        raise Unavailable(f"the cluster map in {plan.data_dir} cannot be read: {error}") from error
    except InvalidMap as error:
        raise DataLoss(f"the cluster map in {plan.data_dir} is damaged: {error}") from error
    if current is None:
        raise FailedPrecondition(f"the cluster map in {plan.data_dir} vanished while it was read")
    own = own_leaves(plan.data_dir, current.leaves)
    if not own:
        raise FailedPrecondition(f"no leaf of the cluster lives in {plan.data_dir} any more: all of them were removed")
    for name, asked, held in (("leaves", plan.leaves, len(own)), ("shards", plan.shards, len(current.shards))):
        if asked is not None and asked != held:
            raise InvalidArgument(
                f"{plan.data_dir} holds a cluster with {held} {name}, not {asked}; leave --{name} out to continue it, or "
                "choose another directory with --data-dir",
                ErrorDetails(field=name),
            )
    if plan.replicas is not None and plan.replicas != current.replicas:
        raise InvalidArgument(
            f"{plan.data_dir} holds a cluster with {current.replicas} replicas of each shard, not {plan.replicas}; leave "
            "--replicas out to continue it, or choose another directory with --data-dir",
            ErrorDetails(field="replicas"),
        )
    return current


class LocalCluster:
    """A router and its leaves as supervised processes of this machine. Start it from the main thread; stop it once."""

    def __init__(self, plan: ClusterPlan, clock: Clock, report: Callable[[str], None], echo: Echo | None = None) -> None:
        plan.check()
        self.plan = plan
        self._clock = clock
        self._report = report
        self._echo = echo
        self._lock: DirectoryLock | None = None
        self._workers: RouterWorkers | None = None
        self._supervisor: Supervisor | None = None
        self.leaves: tuple[str, ...] = ()
        self.shards: tuple[int, ...] = ()
        self.replicas = 0

    @property
    def log_dir(self) -> Path:
        """Where the processes' logs are."""
        return self.plan.data_dir / "logs"

    @property
    def pids(self) -> dict[str, int]:
        """The running processes."""
        return self._supervisor.pids if self._supervisor else {}

    async def start(self) -> str:
        """Start everything; returns the router's address when it and every leaf serve.

        Raises InvalidArgument or Unavailable before anything was started, StartFailed when a process does not come up.
        """
        root = self.plan.data_dir.absolute()
        self._lock = DirectoryLock(root)
        url = self.plan.coordinator or f"sqlite://{root / 'coordinator.db'}"
        check_ports(self.plan.ports(self.plan.leaves or 0))
        coordinator = connect(url, self._clock)
        try:
            current = await open_map(coordinator, self.plan)
        finally:
            await coordinator.close()
        self.leaves = self._settle_leaves(root, current)
        self.shards = tuple(sorted(current.shards))
        self.replicas = min(len(each.desired or each.in_sync) for each in current.shards.values())
        check_ports(self.plan.ports(len(self.leaves)))
        if self.plan.workers > 1:
            self._workers = RouterWorkers(f"{HOST}:{self.plan.port}", self.plan.workers)
        specs = child_specs(self.plan, root, url, self.leaves, self._workers)
        self._supervisor = Supervisor(specs, root / "logs", self._clock, self._report, self._echo)
        addresses = await self._supervisor.start()
        return self._workers.address if self._workers is not None else addresses[ROUTER]

    def _settle_leaves(self, root: Path, current: ClusterMap) -> tuple[str, ...]:
        """The leaves to run; from now on they are those of this directory."""
        leaves = own_leaves(root, current.leaves)
        for leaf in removed_leaves(root, current.leaves):
            self._report(f"{leaf} was removed from the cluster; {root / leaf} is not used any more")
        try:
            note_own_leaves(root, leaves)
        except OSError as error:
            raise Unavailable(f"the data directory {root} cannot be used: {error.strerror}") from error
        return leaves

    async def stop(self) -> None:
        """Stop every process within 5 s, and release the directory."""
        if self._supervisor is not None:
            await self._supervisor.stop()
        if self._workers is not None:
            self._workers.close()
        if self._lock is not None:
            self._lock.release()

    def kill(self) -> None:
        """Do not wait for anybody any longer: the stop that is under way ends at once."""
        if self._supervisor is not None:
            self._supervisor.kill()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


def _hedging_flags(plan: ClusterPlan) -> list[str]:
    """The router's flags for what the plan says otherwise than a router does by itself."""
    flags = (("--hedge", plan.hedge, AUTO), ("--hedge-budget", plan.hedge_budget, AUTO))
    said = [f"{flag}={value}" for flag, value, usual in flags if value != usual]
    return said if plan.hedge_attempts == ATTEMPTS_MAX else [*said, f"--hedge-attempts={plan.hedge_attempts}"]


def child_specs(
    plan: ClusterPlan, root: Path, coordinator: str, leaves: tuple[str, ...], workers: RouterWorkers | None = None
) -> list[ChildSpec]:
    """The processes of a cluster: the router, or each of its workers, and a leaf each."""
    # -P: a folder "leaf" or "router" where the user happens to stand must not be taken for ours.
    python = (sys.executable, "-P", "-m")
    shared = ("--coordinator", coordinator, "--log-level", plan.log_level, *(("--log-json",) if plan.log_json else ()))

    def metrics(offset: int) -> tuple[str, ...]:
        return () if plan.metrics_port is None else ("--metrics-port", str(plan.metrics_port + offset))

    if workers is None:
        listen = ("--listen", f"{HOST}:{plan.port}")
        router = (*python, "router", *listen, *shared, *metrics(0), *_hedging_flags(plan))
        specs = [ChildSpec(ROUTER, router, is_front=True, keeps_address=True)]
    else:
        specs = workers.specs((*python, "router", *shared, *_hedging_flags(plan)), plan.metrics_port)
    flags: tuple[str, ...] = ("--allow-faults",) if plan.are_faults_allowed else ()
    if plan.heal_after_s != HEAL_AFTER_S:
        flags += ("--heal-after", f"{plan.heal_after_s:g}")
    if plan.failure_timeout_s != FAILURE_TIMEOUT_S:
        flags += ("--failure-timeout", f"{plan.failure_timeout_s:g}")
    if plan.refresh_interval_s != REFRESH_INTERVAL_S:
        flags += ("--refresh-interval", f"{plan.refresh_interval_s:g}")
    if plan.cache_mb is not None:
        flags += ("--cache-mb", str(plan.cache_mb))
    for number, leaf in enumerate(leaves):
        place = ("--id", leaf, "--data-dir", str(root / leaf), "--listen", f"{HOST}:0")
        command = (*python, "leaf", *place, *shared, *metrics(plan.workers + number), *flags)
        specs.append(ChildSpec(leaf, command, stop_signal=HASTY_STOP_SIGNAL))
    return specs
