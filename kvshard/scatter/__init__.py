"""A request over many shards: cut into legs, sent to leaves, gathered again.

What the router does for every client and the direct client for itself; only the services on top of it differ.
"""
