"""The synchronous client, for programs of threads: Django, Flask, scripts. `from kvshard.sync import Client`.

What it gives and raises are the classes of `kvshard` itself (`kvshard.Item`, `kvshard.VersionConflict`, ...).
"""

from kvshard.sync.client import Client
from kvshard.sync.collection import Collection
from kvshard.sync.keyspace import Keyspace
from kvshard.sync.scan import Scan

__all__ = ["Client", "Collection", "Keyspace", "Scan"]
