"""`metrics.jsonl`, one JSON object a line; what depends on the clock stands under the key "timing" alone."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError
from student_trainer.whole_files import writing

logger = logging.getLogger(__name__)


class Metrics:
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
                logger.warning("%s: was cut or replaced: metrics of steps before the checkpoint are lost", path)
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


def last_figures(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last line of a step and the last line of an evaluation; {} where there is none.

    Raises:
        ConfigError: the file cannot be read.
    """
    step: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return step, evaluation
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; look what lies there") from None
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # the line that is being written, did not fit on the disk, or was damaged there
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            continue
        if isinstance(line.get("evaluation"), dict):
            evaluation = line
        elif isinstance(line.get("timing"), dict):
            step = line
    return step, evaluation
