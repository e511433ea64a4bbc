"""A cluster map that stays as it is, for router code that runs in the load client."""

from kvshard.clustermap import ClusterMap


class OneMap:
    """What the router wants of a map (`kvshard.scatter.routes.MapSource`)."""

    has_map = True

    def __init__(self, cluster_map: ClusterMap) -> None:
        self.current = cluster_map

    async def refresh(self) -> ClusterMap:
        """The same map."""
        return self.current

    async def wait_newer(self, version: int, timeout: float) -> ClusterMap:
        """The same map, at once."""
        return self.current
