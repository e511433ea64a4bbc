"""Which leaves of a cluster live in a data directory: those that `kvshard up` runs there, and no others.

A leaf that joined from elsewhere is run by whoever started it; a second process under its id would pass an empty directory off
as its data. The directory lists its own leaves in a file. One that joined with its data inside the directory becomes its own
as soon as nobody else runs it.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

FILE_NAME = "leaves"
"""One id a line."""


def own_leaves(root: Path, known: Iterable[str]) -> tuple[str, ...]:
    """The leaves of the map (known) that live in this directory, in their natural order; all of them in a new one."""
    listed = _listed(root)
    own = [leaf for leaf in known if listed is None or leaf in listed or _is_adoptable(root / leaf)]
    return tuple(sorted(own, key=lambda leaf: (len(leaf), leaf)))


def removed_leaves(root: Path, known: Iterable[str]) -> tuple[str, ...]:
    """Leaves that lived here and are not in the map any more."""
    return tuple(sorted(set(_listed(root) or ()) - set(known)))


def note_own_leaves(root: Path, leaves: Iterable[str]) -> None:
    """Write the list. Raises OSError."""
    text = "".join(f"{leaf}\n" for leaf in leaves)
    with contextlib.suppress(FileNotFoundError):
        if (root / FILE_NAME).read_text() == text:
            return
    new = root / f"{FILE_NAME}.new"
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(root / FILE_NAME)


def _listed(root: Path) -> list[str] | None:
    try:
        return (root / FILE_NAME).read_text().split()
    except FileNotFoundError:
        return None


def _is_adoptable(folder: Path) -> bool:
    """Whether there is a leaf's data that no process uses. The engine keeps this file locked while it is open."""
    try:
        lock = os.open(folder / "data" / "LOCK", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
