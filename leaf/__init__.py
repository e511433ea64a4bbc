"""The leaf: hosts replicas of shards, stores them, indexes them and answers for them."""
