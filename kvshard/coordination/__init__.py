"""The store of the cluster map: one interface, several engines behind it."""
