"""The fast path beside its peers: single operations, batches, durable writes, and the bare calls that bound them."""
