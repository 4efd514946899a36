"""Where captured files lie, as users write it: a folder of this machine, or a URL."""

from __future__ import annotations

import re
from pathlib import Path

from schemas.errors import ConfigError

_SECRETS = re.compile(r"://[^@]*:[^@]*@|[?#]|https?://[^/]*@")
"""What stands alone before an @ is a container of Azure's, or a name; but by HTTP it is a token."""


def is_url(folder: Path | str) -> bool:
    """Whether a user's text names no folder of this machine, but a URL such as `s3://bucket/folder`."""
    return isinstance(folder, str) and "://" in folder


def refuse_secrets(url: str, what: str = "the captured files") -> None:
    """Raise ConfigError, which does not repeat it, for a URL with credentials or a query: URLs are shown and stored.

    `what` says of what it is.
    """
    if _SECRETS.search(url):
        raise ConfigError(
            f"the URL of {what} has credentials or a query in it; give SCHEME://PLACE/FOLDER alone, and "
            "credentials by the environment or in the files of that store's library"
        )
