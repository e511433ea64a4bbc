"""Fetch the peers' programs, and say which there are: `python -m benchmarks.peers`, `make bench-peers`.

Always exits 0: the benchmarks run without them too, and say what is missing.
"""

from benchmarks.measured import Absent
from benchmarks.peers import executables


def main() -> None:
    """Fetch what is missing, then list all."""
    if problem := executables.fetch():
        print(problem)
    for name in executables.PACKAGES:
        found = executables.find(name)
        print(f"{name}: {found.why if isinstance(found, Absent) else f'{found.path} ({found.version})'}")


if __name__ == "__main__":
    main()
