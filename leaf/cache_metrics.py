"""What the metrics show of a leaf's cache of keys: read at each scrape, on the scraper's thread."""

from collections.abc import Iterator

from kvshard.telemetry import ScrapedFamily
from leaf.key_cache import KeyCache


def cache_families(cache: KeyCache) -> Iterator[ScrapedFamily]:
    """The families, with the cache's values now."""
    for name, text, count in (
        ("hits", "Keys asked for by reads that were in the cache.", cache.hits),
        ("misses", "Keys asked for by reads that were not in the cache.", cache.misses),
        ("turns", "Times that the older half of the cache was dropped.", cache.turns),
    ):
        yield ScrapedFamily(f"kvshard_leaf_cache_{name}_total", text, (), [((), float(count))], is_counter=True)
    for name, text, count in (
        ("keys", "Keys in the cache.", len(cache)),
        ("bytes", "Bytes that the cache counts for its keys, values and dicts.", cache.size_bytes),
        ("limit_bytes", "Bytes that the cache may count.", cache.max_bytes),
    ):
        yield ScrapedFamily(f"kvshard_leaf_cache_{name}", text, (), [((), float(count))])
