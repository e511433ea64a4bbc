"""The only shared door to gRPC."""
