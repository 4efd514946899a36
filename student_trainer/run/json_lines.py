"""A file of a run with one JSON object a line, which goes back with the run when that goes back to a checkpoint."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from pipeline.whole_files import writing

logger = logging.getLogger(__name__)


class JsonLines:
    """The file, open for the training loop."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        """Open it, cut back to the length that the checkpoint knows; later lines are of steps taken again.

        A shorter one was cut or replaced: it is gone on with from its last whole line, with a warning, since nothing
        is learned from it.

        Raises:
            CannotWrite: the disk refuses.
        """
        self._path = path
        with writing(path):
            # Without a buffer: what did not fit on a full disk is not written again when the file is closed.
            self._file = path.open("ab+", buffering=0)
            length = self._file.seek(0, os.SEEK_END)
            if length < num_bytes:
                logger.warning("%s: was cut or replaced: lines of steps before the checkpoint are lost", path)
                self._file.seek(0)
                num_bytes = self._file.read().rfind(b"\n") + 1
            if length > num_bytes:
                self._file.truncate(num_bytes)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; every number in it is finite.

        Raises:
            CannotWrite: the disk refuses; what it took of the line is cut off by a resume.
        """
        left = memoryview(json.dumps(line, allow_nan=False).encode() + b"\n")
        with writing(self._path):
            while left:  # a disk that is nearly full takes a part
                left = left[self._file.write(left) :]

    def sync(self) -> int:
        """Bring all lines to disk and return the file's length in bytes.

        Raises:
            CannotWrite: the disk refuses.
        """
        with writing(self._path):
            os.fsync(self._file.fileno())
            return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
