"""The broker's jars: which they are (`jars.lock`), where they lie, and that they are what the lock file says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import ConfigError

KAFKA_VERSION = "4.3.1"
LOCK_FILE = Path(__file__).with_name("jars.lock")


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock file."""

    group: str
    artifact: str
    version: str
    size: int
    """In bytes."""
    sha256: str
    """64 hex digits."""

    @property
    def file_name(self) -> str:
        """Its name in the cache folder."""
        return f"{self.artifact}-{self.version}.jar"

    def check(self, path: Path) -> None:
        """Refuse a file whose content is not the pinned one (ConfigError, which names it)."""
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise ConfigError(
                f"{path} is not the {self.file_name} that jars.lock pins (SHA-256 {found[:12]}..., "
                f"not {self.sha256[:12]}...): remove that file, the next start fetches it again"
            )


def read_lock(path: Path = LOCK_FILE) -> tuple[Jar, ...]:
    """Read the lock file: a line is `group:artifact:version size sha256:hex`; `#` begins a comment."""
    jars = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            coordinate, size, digest = line.split()
            group, artifact, version = coordinate.split(":")
            jars.append(Jar(group, artifact, version, int(size), digest.removeprefix("sha256:")))
    return tuple(jars)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/distillog/kafka-4.3.1`, without that variable below `~/.cache`."""
    # The XDG rules say that a relative path there is to be ignored.
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "distillog" / f"kafka-{KAFKA_VERSION}"


def ready_jars(folder: Path | None = None, jars: Sequence[Jar] | None = None) -> list[Path]:
    """The paths of all pinned jars in `folder` (the user's cache), each checked; what is missing is fetched first.

    Every call hashes all of them (44 MB, about 0.05 s). ConfigError: one differs, or fetching is not possible.
    """
    folder = cache_folder() if folder is None else folder
    jars = read_lock() if jars is None else jars
    if any(not (folder / jar.file_name).exists() for jar in jars):
        from pipeline.broker.download import fetch_missing

        fetch_missing(folder, jars)
    paths = [folder / jar.file_name for jar in jars]
    for jar, path in zip(jars, paths, strict=True):
        jar.check(path)
    return paths
