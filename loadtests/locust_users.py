"""The base of locust's users: each is a Poisson source of requests, open loop.

A user of locust waits for its answer before it asks again, and drops the turns that it missed meanwhile. These do not: a task
only starts a request, in a greenlet of its own, at the instant that the user's seeded schedule says; its time counts from that
instant. What cannot be started because too much is under way is counted as skipped, and as failed at the deadline.
"""

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.pool import Pool
from locust import User
from locust.env import Environment

from kvshard.errors import KvShardError
from loadtests.locust_reads import Reads
from loadtests.locust_stats import OpenLoopStats

IN_FLIGHT_MAX = 200
"""Requests of one user under way at once."""

STATS = OpenLoopStats()
"""Of this process; on a master, of all workers."""

_NUMBERS = itertools.count()


class Skipped(Exception):
    """A request that was not sent, since too many were under way."""


class OpenLoopUser(User):
    """Sends `--rate` requests a second. Subclasses have tasks that call `send`."""

    abstract = True
    reads: Reads | None = None

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        self._rate = float(options.rate)
        self._rng = random.Random(f"{options.seed}:{type(self).__name__}:{next(_NUMBERS)}:{_process_number(environment)}")
        self._pool = Pool(IN_FLIGHT_MAX)
        self._next_at = 0.0

    def on_start(self) -> None:
        """Connect, once a process."""
        self._next_at = time.monotonic() + self._rng.expovariate(self._rate)

    def on_stop(self) -> None:
        """Give up what is under way."""
        self._pool.kill(block=False)

    def wait_time(self) -> float:
        """Until the next planned start; 0 when it has passed, so that no arrival is lost."""
        return max(0.0, self._next_at - time.monotonic())

    def send(self, name: str, call: Callable[[Reads, random.Random], None]) -> None:
        """Start the request that is due now."""
        planned = self._next_at
        if time.monotonic() < planned:
            return  # The very first turn, which locust gives before any waiting.
        self._next_at = planned + self._rng.expovariate(self._rate)
        reads = connection(self.environment)
        if self._pool.full():
            STATS.record(name, reads.deadline_s, is_failed=True, is_skipped=True)
            self._fire(name, reads.deadline_s, Skipped("too many requests were under way"))
            return
        self._pool.spawn(self._one, name, call, reads, planned, random.Random(self._rng.getrandbits(32)))

    def _one(
        self, name: str, call: Callable[[Reads, random.Random], None], reads: Reads, planned: float, rng: random.Random
    ) -> None:
        STATS.lag.record(max(0.0, time.monotonic() - planned))
        try:
            call(reads, rng)
        except KvShardError as error:
            STATS.record(name, reads.deadline_s, is_failed=True)
            self._fire(name, reads.deadline_s, error)
        else:
            seconds = time.monotonic() - planned
            STATS.record(name, seconds)
            self._fire(name, seconds, None)

    def _fire(self, name: str, seconds: float, error: Exception | None) -> None:
        self.environment.events.request.fire(
            request_type="kvshard", name=name, response_time=1e3 * seconds, response_length=0, exception=error, context={}
        )


def _process_number(environment: Environment) -> int:
    """Which worker this is, so that two of them do not follow one schedule; 0 without workers."""
    return int(getattr(environment.runner, "worker_index", 0) or 0)


_CONNECTIONS: dict[tuple[Any, ...], Reads] = {}
_CONNECTING = gevent.lock.RLock()


def connection(environment: Environment) -> Reads:
    """The process's connection with what it may ask for, made on first use and again when the options have changed."""
    options = environment.parsed_options
    wanted = (environment.host or "127.0.0.1:7700", float(options.deadline), options.hedge, options.replica_choice)
    with _CONNECTING:
        if wanted not in _CONNECTIONS:
            for made in _CONNECTIONS.values():
                made.close()
            _CONNECTIONS.clear()
            address, deadline_s, hedge, choice = wanted
            reads = Reads(address.removeprefix("http://"), deadline_s=deadline_s, hedge=hedge, replica_choice=choice)
            reads.learn()
            _CONNECTIONS[wanted] = reads
        return _CONNECTIONS[wanted]
