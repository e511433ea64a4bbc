"""`python -m kvshard.cli`: the `kvshard` command without an installed script."""

import sys

from kvshard.cli import main

if __name__ == "__main__":
    sys.exit(main())
