"""Generated from protos/kvshard/v1/ by scripts/generate_protos.py; never edited."""
