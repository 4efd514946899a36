"""`metrics.jsonl`, one JSON object a line; what depends on the clock stands under the key "timing" alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from schemas.errors import CheckpointError
from student_trainer.whole_files import writing


class Metrics:
    """The file, open for the training loop."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        """Open it, cut back to the length that the checkpoint knows; later lines are of steps taken again.

        Raises:
            CheckpointError: it is shorter than that.
            CannotWrite: the disk refuses.
        """
        self._path = path
        with writing(path):
            # Without a buffer: what did not fit on a full disk is not written again when the file is closed.
            self._file = path.open("ab", buffering=0)
            length = self._file.seek(0, os.SEEK_END)
            if length > num_bytes:
                self._file.truncate(num_bytes)
        if length < num_bytes:
            self._file.close()
            raise CheckpointError(f"{path}: is shorter than the checkpoint says; it was cut or replaced")

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


def last_figures(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last line of a step and the last line of an evaluation; {} where there is none."""
    step: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the line that is being written, or did not fit on the disk
            if "evaluation" in line:
                evaluation = line
            else:
                step = line
    return step, evaluation
