"""Locust's users: `locust -f loadtests/locustfile.py --host 127.0.0.1:7700`, with its web page or headless.

Shapes are files of their own: `locust -f loadtests/locustfile.py,loadtests/shapes/spike.py`.
"""

import grpc.experimental.gevent

grpc.experimental.gevent.init_gevent()  # Before any channel: else a call would block every user.

from locust import task  # noqa: E402

from loadtests import locust_events  # noqa: E402, F401 (registers its listeners)
from loadtests.locust_reads import Reads  # noqa: E402
from loadtests.locust_users import OpenLoopUser  # noqa: E402


class PointReads(OpenLoopUser):
    """Reads single keys."""

    @task
    def point_read(self) -> None:
        """Any key."""
        self.send("point read", Reads.point_read)


class Batches(OpenLoopUser):
    """Reads batches that reach every shard."""

    @task
    def batch(self) -> None:
        """A key of every shard."""
        self.send("batch", Reads.batch)


class Searches(OpenLoopUser):
    """Searches all shards."""

    @task
    def search(self) -> None:
        """Two words."""
        self.send("search", Reads.search)


class HotKey(OpenLoopUser):
    """Everybody reads the same key."""

    @task
    def hot_key(self) -> None:
        """The one key."""
        self.send("hot key", Reads.hot_key)


class Writes(OpenLoopUser):
    """Writes, each durable on every replica."""

    @task
    def write(self) -> None:
        """A key of its own."""
        self.send("write", Reads.write)


class Mixed(OpenLoopUser):
    """Some of everything: mostly reads, as a web shop would."""

    @task(12)
    def point_read(self) -> None:
        """Any key."""
        self.send("point read", Reads.point_read)

    @task(4)
    def batch(self) -> None:
        """A key of every shard."""
        self.send("batch", Reads.batch)

    @task(2)
    def search(self) -> None:
        """Two words."""
        self.send("search", Reads.search)

    @task(2)
    def write(self) -> None:
        """A key of its own."""
        self.send("write", Reads.write)
