"""The asyncio client. `from kvshard import Client`; the names are exported there."""
