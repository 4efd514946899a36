"""Where the texts of a folder's files begin: found once, kept in the user's cache, and memory-mapped from there.

The files count as if they lay one behind the other, in the order of their names; a place is a byte of that row.
F: files; n: texts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Ints
from pipeline.progress import Progress
from pipeline.user_code import one_line

log = logging.getLogger(__name__)

UNITS = ("line", "paragraph", "file")
_VERSION = 1
"""Raised when other texts are found in the same bytes."""
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file as it was when the folder was opened."""

    path: str
    """Relative to the folder."""
    size: int
    """bytes"""
    mtime_ns: int


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/distillog/text`, without that variable below `~/.cache`."""
    # The XDG rules say that a relative path there is to be ignored.
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "distillog" / "text"


def starts(folder: Path, files: Sequence[TextFile], unit: str) -> Ints:
    """[n] int64, rising: the places at which texts begin. A text ends where the next begins, or its file ends.

    A line counts that is more than white space, and a paragraph is lines up to one that is not; with unit "file" each
    file that is not empty is a text, and none is read. An index is used that was made of files of the same names, sizes
    and times of change. Where the cache cannot be written, a warning says so, and the index is in memory alone. Raises
    OSError where a file cannot be read.
    """
    firsts = np.cumsum([0, *(each.size for each in files)], dtype=np.int64)
    if unit == "file":
        return firsts[:-1][np.diff(firsts) > 0]
    place, state = _names(folder, files, unit)
    path = cache_folder() / f"{place}-{state}.int64"
    if (kept := _kept(path, int(firsts[-1]))) is not None:
        return kept
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(prefix=f".{place}-", dir=path.parent)
    except OSError as error:
        log.warning("%s: no index is kept there, and the next opening looks for texts again: %s", path, one_line(error))
        return np.concatenate([np.empty(0, np.int64), *_found(folder, files, firsts, unit)])
    try:
        with open(descriptor, "wb") as file:
            for some in _found(folder, files, firsts, unit):
                file.write(some.astype("<i8").tobytes())
        os.replace(fresh, path)  # whole or not at all, whoever else makes the same
    finally:
        with suppress(FileNotFoundError):
            os.unlink(fresh)
    for old in path.parent.glob(f"{place}-*.int64"):
        if old != path:
            with suppress(OSError):
                old.unlink()  # of the same folder as it was; whoever has it mapped keeps it
    kept = _kept(path, int(firsts[-1]))
    return np.empty(0, np.int64) if kept is None else kept


def _names(folder: Path, files: Sequence[TextFile], unit: str) -> tuple[str, str]:
    """Hashes of what an index is of, and of the state of the files that it was made of."""
    suffixes = sorted({os.path.splitext(each.path)[1] for each in files})
    facts = [[each.path, each.size, each.mtime_ns] for each in files]
    of = (json.dumps(what).encode() for what in ([_VERSION, str(folder), unit, suffixes], facts))
    place, state = (hashlib.sha256(what).hexdigest()[:24] for what in of)
    return place, state


def _kept(path: Path, end: int) -> Ints | None:
    """The index that lies there; None where there is none that could be of files of `end` bytes."""
    try:
        found = np.memmap(path, "<i8", "r")
    except (OSError, ValueError):  # not there, or empty, or cut
        return None
    return found.view(np.ndarray) if 0 <= int(found[0]) <= int(found[-1]) < end else None


def _found(folder: Path, files: Sequence[TextFile], firsts: Ints, unit: str) -> Iterator[Ints]:
    with Progress(title=f"looking for texts in {folder}", after=2.0) as progress:
        for number, (each, first) in enumerate(zip(files, firsts.tolist(), strict=False)):
            progress.update(files=number, MB=first >> 20)
            yield from of_file(folder / each.path, first, each.size, unit)


def of_file(path: Path, first: int, size: int, unit: str, chunk: int = _CHUNK) -> Iterator[Ints]:
    """Places where texts begin in `size` bytes of a file that begins at place `first`; no more than a chunk is read."""
    begun, seen, blank_before = first, False, True  # the line at hand: where, if it has text, and what is before it
    at = first
    with path.open("rb") as file:
        while at < first + size and (read := file.read(min(chunk, first + size - at))):
            values = np.frombuffer(read, np.uint8)
            bounds = np.concatenate([[0], np.flatnonzero(values == ord("\n")) + 1])
            cut = bounds[-1] < len(values)  # the last line goes on in the next chunk
            whole = len(bounds) - 1
            has = np.logical_or.reduceat(_is_text(values), bounds if cut else bounds[:-1])
            has[0] |= seen
            places = bounds + at
            places[0] = begun
            yield _begin(places[:whole], has[:whole], blank_before, unit)
            if whole:
                blank_before = not has[whole - 1]
            begun, seen = int(places[-1]), cut and bool(has[-1])
            at += len(values)
    if seen:
        yield _begin(np.array([begun]), np.array([True]), blank_before, unit)


def _is_text(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which bytes are more than white space, as `bytes.strip` has it: a blank, and 9 to 13."""
    is_text: npt.NDArray[np.bool_] = (values != ord(" ")) & (values - np.uint8(9) > np.uint8(4))  # wraps below 9
    return is_text


def _begin(places: Ints, has: npt.NDArray[np.bool_], blank_before: bool, unit: str) -> Ints:
    """Which of some lines begin a text."""
    if unit == "paragraph" and len(has):
        has = has & ~np.concatenate([[not blank_before], has[:-1]])
    return places[has]
