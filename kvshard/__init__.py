"""kvshard: a sharded, replicated key-value service with full-text search."""

__version__ = "0.1.0"
