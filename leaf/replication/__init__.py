"""The replication protocol of one shard, without I/O: PacificA writes, CRAQ reads."""
