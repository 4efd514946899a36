"""A `.npy` file of token IDs, cut into windows: nothing is tokenised as it is read.

T: tokens of the file; L: of a window; V: tokens that there are.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Arrays, Dataset, Field, Ints, Samples, Vocabulary
from pipeline.datasets.params import Params
from pipeline.datasets.texts.tokens import MAX_LENGTH, Tokens
from schemas.errors import ConfigError, ManifestMismatch


@dataclass(frozen=True, slots=True, eq=False)
class TokenWindows:
    """Window i is tokens i * L to (i + 1) * L; what is left at the end of the file is in none."""

    uri: str
    file: Path
    state: tuple[int, int, int]
    """Inode, bytes and time of change of the file when it was opened."""
    ids: npt.NDArray[Any]
    """[T] whole numbers, memory-mapped"""
    length: int
    vocabulary: Vocabulary
    continuing: npt.NDArray[np.bool_]
    """[V]: tokens that go on with the word before; [0] where nothing is known of them."""
    special: npt.NDArray[np.bool_]
    """[V]: tokens that are of no word."""
    num_classes: ClassVar[int] = 0
    class_names: ClassVar[tuple[str, ...]] = ()
    thread_safe: ClassVar[bool] = True

    @property
    def num_samples(self) -> int:
        """Whole windows."""
        return len(self.ids) // self.length

    @property
    def fields(self) -> dict[str, Field]:
        """Those of `text` but for `token_type_ids`."""
        shape = (self.length,)
        return {
            "input_ids": Field(shape, "int64"),
            "attention_mask": Field(shape, "int64"),
            "words": Field(shape, "int32"),
        }

    def read(self, sample_ids: Ints) -> Samples:
        """A window with a number that is no token is a fault. Raises OSError where the file is gone or was replaced.

        A mapped file that shrank would kill the process (SIGBUS).
        """
        if _state(self.file) != self.state:
            raise OSError(errno.ESTALE, "was changed while it was open: start again", str(self.file))
        windows = self.ids[: self.num_samples * self.length].reshape(-1, self.length)[sample_ids].astype(np.int64)
        bad = (windows < 0).any(axis=1)
        if self.vocabulary.size:
            bad |= (windows >= self.vocabulary.size).any(axis=1)
        last = (self.vocabulary.size or 1 << 63) - 1
        faults = []
        for row in np.flatnonzero(bad).tolist():
            low, high = windows[row].min(), windows[row].max()
            faults.append((row, f"{self.file.name}, window {sample_ids[row]}: {low} to {high}; tokens are 0 to {last}"))
        kept = np.flatnonzero(~bad)
        windows = windows[kept]
        begins = np.ones(windows.shape, bool)
        inside = np.ones(windows.shape, bool)
        if len(self.continuing):
            inside = ~self.special[windows]
            begins = inside & ~self.continuing[windows]
            # A piece that nothing stands before is a word's all the same: the window cut it off.
            begins[:, 0] = inside[:, 0]
            begins[:, 1:] |= inside[:, 1:] & ~inside[:, :-1]
        words = np.where(inside, np.cumsum(begins, axis=1), 0).astype(np.int32)
        fields: Arrays = {"input_ids": windows, "attention_mask": np.ones_like(windows), "words": words}
        return Samples(fields, kept, tuple(faults))

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64, all -1: unlabelled."""
        return np.full(len(sample_ids), -1, np.int64)


def token_windows(path: str, params: dict[str, str]) -> Dataset:
    """`tokens:/data/ids.npy?length=128&tokenizer=/data/tokenizer.json`: [T] whole numbers of any width.

    Without a tokenizer nothing is known of the tokens: each is a word, and nobody can tell another vocabulary. Raises
    ConfigError for a file that is missing, no such array, or shorter than a window, and as `Tokens`.
    """
    taken = Params("tokens", params)
    length = taken.number("length", 128, 1, MAX_LENGTH)
    tokenizer, pinned, pad = taken.text("tokenizer", ""), taken.text("vocabulary", ""), taken.text("pad", "")
    taken.done()
    if not path:
        raise ConfigError("dataset tokens needs a file: write tokens:/path/to/ids.npy")
    file = Path(path).resolve()
    try:
        state = _state(file)
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ConfigError(f"dataset tokens: no file {file}") from None
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{file} is not a plain .npy array (pickled ones are refused): {error}") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ConfigError(f"dataset tokens: {file} must be [T] whole numbers, one token ID after the other")
    if len(ids) < length:
        raise ConfigError(f"dataset tokens: {file} has {len(ids)} tokens, fewer than one window of length={length}")
    continuing = special = np.empty(0, bool)
    vocabulary = Vocabulary("", 0)
    if tokenizer:
        tokens = Tokens("tokens", Path(tokenizer), length, pad, pinned)
        vocabulary, continuing, special = tokens.vocabulary, tokens.continuing(), tokens.special()
    elif pinned:
        raise ManifestMismatch(f"dataset tokens: {file} is of tokenizer {pinned[:16]}...: say tokenizer=PATH")
    uri = f"tokens:{path}" + (f"?{urlencode(params, safe='/')}" if params else "")
    return TokenWindows(uri, file, state, ids, length, vocabulary, continuing, special)


def _state(file: Path) -> tuple[int, int, int]:
    now = file.stat()
    return now.st_ino, now.st_size, now.st_mtime_ns
