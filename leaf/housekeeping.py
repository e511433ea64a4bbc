"""What a leaf does by itself once a second: look at the disk, remove expired keys and dropped collections, trim the logs.

Keys are removed by the primary alone, through the log; every replica trims its own.

Every piece of work is bounded, so that a turn never holds the event loop for long.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from leaf.driver import Driver
from leaf.engine import StorageError
from leaf.expiry import look, sweep
from leaf.operations import DropCollection

INTERVAL_S: Final = 1.0
"""Expired keys are removed, and a disk that has room again is noticed, within about this time."""

BUSY_INTERVAL_S: Final = 0.05
"""While expired keys pile up: 20,000 a second and shard are removed, and requests still get most of the loop."""

_log = structlog.get_logger(__name__)


class Housekeeper:
    """The recurring work on all shards of a driver. on_turn is called after each turn (for gauges)."""

    def __init__(self, driver: Driver, on_turn: Callable[[], None] = lambda: None) -> None:
        self._driver = driver
        self._on_turn = on_turn

    def __repr__(self) -> str:
        return f"Housekeeper({self._driver!r})"

    async def run(self) -> None:
        """Turn after turn, until cancelled."""
        while True:
            is_behind = False
            try:
                await asyncio.to_thread(self._driver.guard.probe)
                self._driver.note_disk()
                is_behind = await self.turn()
            except StorageError as error:
                self._driver.committer.fail(str(error))
            except Exception:
                _log.exception("housekeeping failed")
            await asyncio.sleep(BUSY_INTERVAL_S if is_behind else INTERVAL_S)

    async def turn(self) -> bool:
        """Do what is due, shard by shard. Returns whether there is more. Raises StorageError."""
        driver = self._driver
        is_behind = False
        for shard in list(driver.replicas):
            replica = driver.replicas.get(shard)
            if replica is not None and replica.is_primary:
                is_behind |= sweep(driver, shard, driver.clock.wall_ms())
                self._drop_collections(shard)
            if replica is not None and replica.machine is not None and replica.error is None:
                if not replica.is_primary:
                    look(driver, shard, driver.clock.wall_ms())
                self._trim(shard)
            await asyncio.sleep(0)
        self._on_turn()
        return is_behind

    def _drop_collections(self, shard: int) -> None:
        """Log the drop of collections that hold keys here and that the map has no more."""
        driver = self._driver
        for collection_id in driver.store.state(shard).counts:
            if driver.collection(collection_id) is None:
                _log.info("dropping a collection's keys", shard=shard, collection_id=collection_id)
                driver.propose(shard, DropCollection(collection_id), None, 0)

    def _trim(self, shard: int) -> None:
        driver = self._driver
        indexed = [
            driver.index.indexed_through(shard, collection.id)
            for collection in driver.maps.current.collections.values()
            if collection.written_schema
        ]
        through = driver.store.trim_point(shard, min(indexed, default=None))
        if through is not None:
            driver.store.trim_log(shard, through)
