"""Reads the documents that others are to be like, for a search that names them by key."""

import json

from kvshard.errors import error_of
from kvshard.limits import BATCH_MAX_BYTES
from kvshard.query.asked import QueryOptions
from kvshard.query.lowering import Documents
from kvshard.scatter.kv import KeyValueOperations
from kvshard.scatter.requests import ReadPolicy


class LikeDocuments:
    """The documents of one router's searches."""

    def __init__(self, operations: KeyValueOperations) -> None:
        self._operations = operations

    async def read(self, collection: str, options: QueryOptions, policy: ReadPolicy, deadline: float) -> Documents:
        """The documents by key; those that are not there are missing. Raises what a batch of reads does."""
        keys = options.document_keys()
        if not keys:
            return {}
        found = await self._operations.batch_get(collection, keys, policy, deadline, max_bytes=BATCH_MAX_BYTES)
        for _, failure in found.failures:
            raise error_of(failure)
        return {key: json.loads(value) for key, value in zip(keys, found.values, strict=True) if value is not None}
