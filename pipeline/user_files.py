"""Files that a user names: only regular ones are opened, since a pipe that nobody writes to is waited for in vain."""

from __future__ import annotations

import os
from pathlib import Path

from schemas.errors import ConfigError, DistillogError


def refuse_irregular(path: Path | str, refusal: type[DistillogError] = ConfigError) -> None:
    """Raise `refusal` for a folder, a pipe or a device; that nothing lies there is for whoever opens it to say."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise refusal(f"{path}: is no regular file but a folder, a pipe or a device; give the path of a file")
