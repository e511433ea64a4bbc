"""A file for reading whose reader on another thread can be made to stop: a pipe or a terminal may keep it waiting for ever."""

import io
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class StoppableFile(io.FileIO):
    """An unbuffered file. After `stop` every read, also one that waits, finds the end of the file."""

    def __init__(self, file: Path | int) -> None:
        """file: its path, or a descriptor, which stays open."""
        super().__init__(file, "rb", closefd=not isinstance(file, int))
        self._stopped, self._stop = os.pipe()

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill the buffer with what is there; waits while there is nothing. 0: the end."""
        ready, _, _ = select.select((self.fileno(), self._stopped), (), ())
        return 0 if self._stopped in ready else super().readinto(buffer)

    def stop(self) -> None:
        """End the reading; may be called from any thread, and again."""
        stop, self._stop = self._stop, -1
        if stop >= 0:
            os.close(stop)

    def close(self) -> None:
        """Close the file. Nobody may be reading it."""
        if not self.closed:
            self.stop()
            os.close(self._stopped)
        super().close()
