"""`metrics.jsonl`, one JSON object a line; what depends on the clock stands under the key "timing" alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError


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
