"""The router: finds the shards of a request, asks their leaves, gathers the answers."""
