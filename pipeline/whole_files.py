"""Files that are written whole or not at all, and what is said where the disk refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.user_files import refuse_irregular
from schemas.errors import CannotWrite

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk answers inside the block into one line about `path`.

    Raises:
        CannotWrite: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            advice = "make room there and try again"
        elif error.errno in _FORBIDDEN:
            advice = f"let user {os.geteuid()} write there, or write elsewhere"
        else:
            advice = "look what lies there and try again"
        raise CannotWrite(f"{path}: cannot be written: {error.strerror or error}; {advice}") from error


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder to the disk, so that a power cut takes no file that was made in it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # one that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such thing
            raise
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file in one step, so that nobody reads half of it.

    Raises:
        CannotWrite: the disk refuses; the file is as it was.
    """

    def write(fresh: Path) -> None:
        with fresh.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())

    replace_file(path, write)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file under another name, then rename it into place.

    Raises:
        CannotWrite: the disk refuses; the file is as it was. Or no file lies there, but a folder, a pipe or a device,
            or what lies under that other name is none.
    """
    refuse_irregular(path, CannotWrite)  # renaming would put a file in its place
    fresh = path.with_name(f".new-{path.name}")
    refuse_irregular(fresh, CannotWrite)
    if fresh.is_symlink():
        raise CannotWrite(f"{fresh}: is a link, and what it leads to would be written over; remove it")
    with writing(path):
        try:
            write(fresh)
            fresh.replace(path)
            sync_folder(path.parent)
        finally:
            fresh.unlink(missing_ok=True)
