"""The `kvshard` command. One module a group of verbs; each has a `register(app)`."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 ok, 1 not found or conflict, 2 usage, 3 unavailable."""
    from kvshard.cli.app import run

    return run(argv)
