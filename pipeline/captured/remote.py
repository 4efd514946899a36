"""A folder behind a URL (`s3://bucket/folder`, `gs://`, `memory://`), through fsspec; imported for URLs alone.

Of captured files only ranges of bytes are asked for. Credentials come from where fsspec's library for that store looks
for them, its environment variables and its own files; none is taken from a URL, and none is written anywhere.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from pipeline.captured.reading_ahead import ReadingAhead
from pipeline.captured.urls import refuse_secrets
from pipeline.user_code import said
from schemas.errors import CannotWrite, ConfigError, DataUnavailable

T = TypeVar("T")

log = logging.getLogger(__name__)

_DEADLINE = 60.0
"""Seconds for which a request is tried again, and a run waits for it at most."""
_ATTEMPT = 30.0
"""Seconds for one try: the connection may be dead, and the server's next one not."""
_SLOWEST = 1 << 20
"""Bytes a second of a file that is written: a try may last as long."""
_LONGEST_PAUSE = 5.0
"""Seconds between two tries, at most; the first pause is 0.1 s, and each is twice the last."""
_FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, ImportError)
"""What asking again does not change; and errors that are named after credentials."""
_HIDDEN = re.compile(r"(?<=://)\S*@|(?<=\?)[^\s\"']*=[^\s\"']*")
"""In what a library says; a password may have a slash in it."""


class RemoteFolder:
    """A folder behind a URL.

    Raises:
        ConfigError: it is no URL of a folder, or a package for it is not installed.
    """

    def __init__(self, url: str) -> None:
        refuse_secrets(url)
        self._url = url.rstrip("/")
        protocol = self._url.partition("://")[0].rpartition("::")[2]
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise ConfigError(f"{url}: needs a package: {_advice(protocol)}") from None
        try:
            # An instance of its own: one that others share would remember what was listed before.
            self._files, self._path = url_to_fs(self._url, skip_instance_cache=True)
        except ImportError as error:
            raise ConfigError(f"{url}: needs a package: {_advice(protocol)} ({_said(error)})") from None
        except Exception as error:  # whatever a library says of a URL, or of its own files of settings
            raise ConfigError(f"{url}: cannot be opened: {_said(error)}") from error

    def __str__(self) -> str:
        return self._url

    def address(self, name: str) -> str:
        """Return the file's URL."""
        return f"{self._url}/{name}"

    def read_whole(self, name: str) -> bytes:
        """Return a file's bytes, as `Storage.read_whole`."""
        return self._patiently(name, lambda: bytes(self._files.cat_file(self._path_of(name))))

    def write_whole(self, name: str, content: bytes) -> None:
        """Write a file, as `Storage.write_whole`."""
        path, slowest = self._path_of(name), len(content) / _SLOWEST
        try:
            self._patiently(name, lambda: self._files.pipe_file(path, content), done="written", least=slowest)
        except (FileNotFoundError, ConfigError, DataUnavailable) as error:
            gone = isinstance(error, FileNotFoundError)
            raise CannotWrite(f"{self.address(name)}: no such place" if gone else str(error)) from error

    def size(self, name: str) -> int:
        """Return a file's bytes, as `Storage.size`."""
        return self._patiently(name, lambda: int(self._files.size(self._path_of(name))))

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Return name -> bytes of all files that are listed there: one request for a thousand of them."""

        def listed() -> list[dict[str, Any]]:
            self._files.invalidate_cache()
            found: list[dict[str, Any]] = self._files.ls(self._path, detail=True)
            return found

        found = {}
        for each in self._patiently("", listed):
            if each.get("type") == "file" and isinstance(each.get("size"), int):
                found[str(each["name"]).rpartition("/")[2]] = each["size"]
        return found

    def open(self, name: str, num_bytes: int) -> ReadingAhead:
        """Open a file, as `Storage.open`; that there is none is said when it is first read, as DataUnavailable."""
        path = self._path_of(name)

        def read(size: int, offset: int) -> bytes:
            return bytes(self._files.cat_file(path, start=offset, end=offset + size))

        def finish(begun: Future[bytes], size: int, offset: int) -> bytes:
            try:
                return self._patiently(name, lambda: read(size, offset), begun)
            except FileNotFoundError:
                raise DataUnavailable(f"{self.address(name)}: is gone; bring it back") from None

        return ReadingAhead(lambda size, offset: _beside(lambda: read(size, offset)), finish, num_bytes)

    def _path_of(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def _patiently(
        self, name: str, ask: Callable[[], T], begun: Future[T] | None = None, done: str = "read", least: float = 0.0
    ) -> T:
        """Return what is asked for, trying again for `_DEADLINE` seconds.

        Args:
            name: of the file; "" is the folder.
            ask: the request.
            begun: its first try, if that is under way.
            done: what cannot be done where it fails.
            least: seconds that one try may need.

        Raises:
            FileNotFoundError: nothing lies there.
            ConfigError: it is not to be read, or written, by whoever asks.
            DataUnavailable: it cannot be now.
        """
        address = self.address(name) if name else self._url
        deadline, attempt = _DEADLINE + least, max(_ATTEMPT, least)
        end, pause = time.monotonic() + deadline, 0.1
        while True:
            rest = max(0.0, end - time.monotonic())
            try:
                return (begun or _beside(ask)).result(min(attempt, rest))
            except FileNotFoundError:
                raise
            except TimeoutError:
                reason = "no answer"
            except Exception as error:  # each library has errors of its own beside those of the system
                reason = _said(error)
                if isinstance(error, _FINAL) or "Credentials" in type(error).__name__:
                    raise ConfigError(
                        f"{address}: cannot be {done}: {reason}; look at the URL, and at the credentials in the "
                        "environment"
                    ) from error
            begun = None
            if time.monotonic() + pause > end:
                raise DataUnavailable(
                    f"{address}: cannot be {done} now ({reason}); tried for {deadline:.0f} s; bring it back"
                ) from None
            log.warning("%s: cannot be %s now (%s); trying again", address, done, reason)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _advice(protocol: str) -> str:
    if protocol in ("s3", "s3a"):
        return "`pip install 'distillog[s3]'`"
    return "`pip install 'distillog[fsspec]'`, and what fsspec asks for to read such URLs"


def _said(error: BaseException) -> str:
    """An exception in one line, without what an endpoint's or a proxy's URL has of credentials or a signature."""
    return _HIDDEN.sub("...", said(error))


def _beside(ask: Callable[[], T]) -> Future[T]:
    """Begin a request on a thread of its own, which nobody has to wait for: a library may never come back."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = ask()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="behind a URL", daemon=True).start()
    return future
