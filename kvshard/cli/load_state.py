"""What a load remembers beside its file: how far it is acknowledged, and the lines it could not load.

The state is written after the rejects it counts, and replaced as a whole: after a crash the load goes on at the last state, and
what was written past it is written once more, with the same outcome.
"""

import contextlib
import json
import os
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from kvshard.cli.load_sources import Reject

SAMPLE_BYTES = 4096
"""Of the file's beginning and of the part before the offset, compared on resuming: a file that was changed is loaded anew."""


@dataclass(frozen=True, slots=True)
class LoadState:
    """How far a load is acknowledged. target: what it goes to; incarnations: the replicas' data, which tell clusters apart."""

    target: str
    incarnations: list[str]
    offset: int = 0
    line: int = 0
    loaded: int = 0
    rejected: int = 0
    rejects_bytes: int = 0
    sample: str = ""

    def fits(self, target: str, incarnations: list[str]) -> bool:
        """Whether a load to this target of this cluster may go on here."""
        known = set(self.incarnations)
        return self.target == target and (known == set(incarnations) or not known.isdisjoint(incarnations))


def sample_of(file: BinaryIO, offset: int) -> str:
    """Digest of the file's beginning and of the part before the offset; the file's position moves."""
    digest = blake2b(digest_size=16)
    size = min(SAMPLE_BYTES, offset)
    for start in (0, offset - size):
        file.seek(start)
        digest.update(file.read(size))
    return digest.hexdigest()


class StateFile:
    """Keeps the state of one load. file: what is loaded, opened a second time for the samples."""

    def __init__(self, path: Path, file: Path) -> None:
        self.path = path
        self._file = file

    def read(self, target: str, incarnations: list[str]) -> LoadState | None:
        """The state to go on from; None when there is none that fits the file and the cluster as they are now."""
        try:
            state = msgspec.json.decode(self.path.read_bytes(), type=LoadState)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        with self._file.open("rb") as file:
            is_same = file.seek(0, os.SEEK_END) >= state.offset and sample_of(file, state.offset) == state.sample
        return state if is_same and state.fits(target, incarnations) else None

    def write(self, state: LoadState) -> None:
        """Replace the state as a whole."""
        with self._file.open("rb") as file:
            complete = replace(state, sample=sample_of(file, state.offset))
        scratch = self.path.with_name(self.path.name + ".new")
        scratch.write_text(json.dumps(asdict(complete)))
        scratch.replace(self.path)

    def remove(self) -> None:
        """Forget the load: it is done, or begins anew."""
        self.path.unlink(missing_ok=True)


class RejectFile:
    """The lines that could not be loaded, with number and reason, as JSON lines. It exists only if there are any."""

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        self.path = path
        self.bytes = keep_bytes
        self._file: BinaryIO | None = None
        if keep_bytes:
            # What lies behind was written after the state that is gone on from, and will be written again.
            with contextlib.suppress(FileNotFoundError):
                os.truncate(path, min(keep_bytes, path.stat().st_size))
        else:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, rejects: Iterable[Reject]) -> None:
        """Keep these lines; they are in the file when it returns."""
        text = b"".join(json.dumps(_row(reject), ensure_ascii=False).encode() + b"\n" for reject in rejects)
        if not text:
            return
        if self._file is None:
            self._file = self.path.open("ab")
        self._file.write(text)
        self._file.flush()
        self.bytes += len(text)


def _row(reject: Reject) -> dict[str, object]:
    row: dict[str, object] = {"line": reject.line, "error": reject.error}
    try:
        row["raw"] = reject.raw.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        row["raw_base64"] = b64encode(reject.raw).decode()
    return row
