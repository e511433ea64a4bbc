"""Generated from protos/kvshard/coordination/v1/ by scripts/generate_protos.py; never edited."""
