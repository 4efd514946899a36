"""A folder of text files: each line, paragraph or file is a sample.

N: samples asked for; L: tokens of each.
"""

from __future__ import annotations

import codecs
import errno
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlencode

import numpy as np

from pipeline.datasets.base import Dataset, Field, Ints, Samples, Vocabulary
from pipeline.datasets.folder import open_folder, refuse_outside
from pipeline.datasets.params import Params
from pipeline.datasets.texts.index import UNITS, TextFile, starts
from pipeline.datasets.texts.tokens import Tokens, tokens_of
from schemas.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class TextFolder:
    """Texts tokenised as they are read; the files are checked before each read to be those that were opened."""

    uri: str
    folder: Path
    files: tuple[TextFile, ...]
    """In the order of their names."""
    ends: Ints
    """[F] int64: bytes of all files up to the end of each."""
    starts: Ints
    """[n] int64: at which of these bytes each text begins."""
    tokens: Tokens
    num_classes: ClassVar[int] = 0
    class_names: ClassVar[tuple[str, ...]] = ()
    thread_safe: ClassVar[bool] = True

    @property
    def num_samples(self) -> int:
        """Lines or paragraphs that are more than white space, or files that are not empty."""
        return len(self.starts)

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokenizer."""
        return self.tokens.vocabulary

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return int(self.ends[-1])

    @property
    def fields(self) -> dict[str, Field]:
        """As `Tokens.encode` gives them."""
        return self.tokens.fields

    def read(self, sample_ids: Ints) -> Samples:
        """A text that is no UTF-8, as far as it is looked at, is a fault of its row.

        Raises OSError where a file is gone, or is not what it was when the folder was opened.
        """
        first = self.starts[sample_ids]
        number = np.searchsorted(self.ends, first, side="right")
        last = np.minimum(self.ends[number], self._next(sample_ids))
        base = np.where(number > 0, self.ends[number - 1], 0)
        most = 4 * self.tokens.most_characters  # bytes
        texts: list[str] = []
        rows: list[int] = []
        faults: list[tuple[int, str]] = []
        with ExitStack() as opened:
            descriptors: dict[int, int] = {}
            asked = zip(number.tolist(), (first - base).tolist(), (last - first).tolist(), strict=True)
            for row, (file, offset, size) in enumerate(asked):
                if file not in descriptors:
                    descriptors[file] = self._open(file)
                    opened.callback(os.close, descriptors[file])
                raw = os.pread(descriptors[file], min(size, most), offset)
                try:
                    # A character may be cut where a text is longer than what is looked at.
                    text = codecs.getincrementaldecoder("utf-8")().decode(raw, final=len(raw) == size)
                except UnicodeDecodeError as error:
                    where = f"{self.files[file].path}, byte {offset + error.start}"
                    faults.append((row, f"{where}: no UTF-8 ({error.reason}): write the file as UTF-8"))
                    continue
                rows.append(row)
                texts.append(text.removeprefix("\ufeff").strip())
        arrays, encoded, refused = self.tokens.encode(texts)
        faults += [(rows[row], why) for row, why in refused]
        return Samples(arrays, np.array(rows, np.int64)[encoded], tuple(sorted(faults)))

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64, all -1: unlabelled."""
        return np.full(len(sample_ids), -1, np.int64)

    def _next(self, sample_ids: Ints) -> Ints:
        """[N] int64: where the text after each begins; the end of all bytes behind the last."""
        after = np.minimum(sample_ids + 1, len(self.starts) - 1)
        return np.where(sample_ids + 1 < len(self.starts), self.starts[after], self.ends[-1])

    def _open(self, number: int) -> int:
        file = self.files[number]
        path = self.folder / file.path
        descriptor = os.open(path, os.O_RDONLY)
        now = os.fstat(descriptor)
        if (now.st_size, now.st_mtime_ns) != (file.size, file.mtime_ns):
            os.close(descriptor)
            raise OSError(errno.ESTALE, "was changed while it was open: start again to read it as it is now", str(path))
        return descriptor


def text_folder(path: str, params: dict[str, str]) -> Dataset:
    """`text:/data/books?unit=paragraph&tokenizer=/data/tokenizer.json&length=128`.

    Raises ConfigError for a folder that is missing or without texts, a link that leads out of it, and as `Tokens`.
    """
    taken = Params("text", params)
    split, unit = taken.text("split", ""), taken.text("unit", "line", UNITS)
    suffixes = suffixes_of(taken.text("suffix", ".txt"))
    if not path:
        tokens_of("text", taken, None)
    root, folder = open_folder("text", path, split)
    tokens = tokens_of("text", taken, root)
    assert tokens is not None
    files = listed(root, folder, suffixes)
    if not any(file.size for file in files):
        empty = f" with anything in it, but {len(files)} empty ones" if files else f" ({' '.join(suffixes)})"
        raise ConfigError(f"dataset text: no text file{empty} in {folder}; others are named with suffix=.md,.rst")
    found = starts(folder, files, unit)
    if not len(found):
        raise ConfigError(f"dataset text: the files in {folder} hold nothing but white space")
    uri = f"text:{path}" + (f"?{urlencode(params, safe='/')}" if params else "")
    ends = np.cumsum([file.size for file in files], dtype=np.int64)
    return TextFolder(uri, folder, files, ends, found, tokens)


def suffixes_of(text: str) -> tuple[str, ...]:
    """Endings of files, from a text that joins them by commas: `.txt,md`. Raises ConfigError where there is none."""
    found = tuple(f".{each.strip().lstrip('.').lower()}" for each in text.split(",") if each.strip(" ."))
    if not found:
        raise ConfigError(f"suffix={text}: name the endings of files that are read, such as .txt,.md")
    return found


def listed(root: Path, folder: Path, suffixes: tuple[str, ...]) -> tuple[TextFile, ...]:
    """All text files at any depth, in the order of their paths' characters; hidden ones are left out.

    Raises ConfigError for a link that leads out of the root.
    """
    found: list[TextFile] = []
    left = [("", str(folder))]
    while left:
        before, place = left.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                is_text, is_folder = entry.name.lower().endswith(suffixes), entry.is_dir()
                if (is_text or is_folder) and entry.is_symlink():
                    refuse_outside(root, Path(entry.path))
                    if is_folder:
                        continue  # within the root it is read where it lies
                if is_folder:
                    left.append((f"{before}{entry.name}/", entry.path))
                elif is_text:
                    stat = entry.stat()
                    found.append(TextFile(before + entry.name, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(found, key=lambda file: file.path))
