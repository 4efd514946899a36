"""Where a captured folder lies: on a disk, read by `pread`, or behind a URL (remote.py)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from pipeline.captured.urls import is_url
from pipeline.user_files import refuse_irregular
from pipeline.whole_files import write_whole
from schemas.errors import ConfigError, DataUnavailable

_PART = 8 << 20
"""Bytes of a whole file that are read at once."""


class StoredFile(Protocol):
    """A file that is open; used by one thread."""

    def read(self, num_bytes: int, offset: int) -> bytes:
        """Return bytes from a place on, fewer where the file ends; DataUnavailable: it cannot be read now."""

    def close(self) -> None:
        """Close it."""


class Storage(Protocol):
    """A folder's files, by name. As text it is what the user called it."""

    def address(self, name: str) -> str:
        """Return how messages call a file."""

    def read_whole(self, name: str) -> bytes:
        """Return a small file's bytes; FileNotFoundError: there is none; ConfigError, DataUnavailable: as `open`."""

    def write_whole(self, name: str, content: bytes) -> None:
        """Write a file, in one step where the store has such a thing; CannotWrite: it refuses."""

    def size(self, name: str) -> int:
        """Return a file's bytes; raises as `read_whole`."""

    def sizes(self, names: Iterable[str]) -> Mapping[str, int]:
        """Return name -> bytes of those files that are there, and maybe of others; raises as `open`."""

    def open(self, name: str, num_bytes: int) -> StoredFile:
        """Open a file, of which no more than so many bytes will be asked for.

        Raises:
            FileNotFoundError: there is none.
            ConfigError: it is no regular file, or is not to be read by whoever asks.
            DataUnavailable: it cannot be read now.
        """


def storage_of(folder: Path | str) -> Storage:
    """Return where a folder, or a URL, lies; nothing of it is read yet.

    Raises:
        ConfigError: no URL of a folder, or a package for it is not installed.
    """
    if not is_url(folder):
        return LocalFolder(Path(folder))
    # Only who gives a URL needs fsspec, and the library of that store.
    from pipeline.captured.remote import RemoteFolder

    return RemoteFolder(str(folder))


def split(address: str) -> tuple[Storage, str]:
    """Return the folder that a file's path or URL lies in, as `storage_of`, and the file's name there."""
    folder, _, name = address.rpartition("/")
    return storage_of(folder or "/"), name


def read_file(address: str) -> bytes:
    """Return a file by its path or URL, part by part: each has a deadline of its own.

    Raises:
        ConfigError: there is none, or it is not to be read by whoever asks.
        DataUnavailable: it cannot be read now.
    """
    storage, name = split(address)
    try:
        size = storage.size(name)
        file = storage.open(name, size)
    except FileNotFoundError:
        raise ConfigError(f"{address}: no such file") from None
    try:
        return b"".join(file.read(min(_PART, size - at), at) for at in range(0, size, _PART))
    finally:
        file.close()


def capture_command(stream: str, folder: Path | str, options: str = "") -> str:
    """Return how a user captures into a folder: what lies behind a URL is uploaded after it."""
    if is_url(folder):
        return f"`distillog capture {stream} FOLDER{options}`, then upload it"
    return f"`distillog capture {stream} {folder}{options}`"


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def address(self, name: str) -> str:
        """Return the file's path."""
        return str(self._path / name)

    def read_whole(self, name: str) -> bytes:
        """Return a file's bytes, as `Storage.read_whole`."""
        file = self.open(name, 0)
        try:
            return file.read_all()
        finally:
            file.close()

    def write_whole(self, name: str, content: bytes) -> None:
        """Write a file, as `Storage.write_whole`."""
        write_whole(self._path / name, content)

    def size(self, name: str) -> int:
        """Return a file's bytes, as `Storage.size`."""
        try:
            return self.sizes([name])[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.address(name)) from None

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Return the bytes of those files that are there, as `Storage.sizes`."""
        found = {}
        for name in names:
            path = self._path / name
            refuse_irregular(path)
            try:
                found[name] = path.stat().st_size
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                raise _unreadable(path, error) from None
        return found

    def open(self, name: str, num_bytes: int) -> LocalFile:
        """Open a file, as `Storage.open`."""
        path = self._path / name
        try:
            # Without a wait for whoever writes to a pipe.
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            refuse_irregular(path)
            raise ConfigError(f"{path}: is no regular file; give the path of a file")
        return LocalFile(path, file)


def _unreadable(path: Path, error: OSError | ValueError) -> ConfigError:
    """A ValueError is of a path with a zero byte."""
    return ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', '') or error}")


class LocalFile:
    """A file of this machine: read from a place on by the system, never mapped, since a mapped file that is cut while
    it is read ends the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def read(self, num_bytes: int, offset: int) -> bytes:
        """Return bytes from a place on, as `StoredFile.read`."""
        parts: list[bytes] = []
        try:
            while num_bytes and (part := os.pread(self._descriptor, num_bytes, offset)):
                parts.append(part)
                num_bytes, offset = num_bytes - len(part), offset + len(part)
        except OSError as error:
            raise DataUnavailable(f"{self._path}: cannot be read now ({error.strerror}); bring it back") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_all(self) -> bytes:
        """Return all bytes, raising as `read`."""
        return self.read(os.fstat(self._descriptor).st_size, 0)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)
