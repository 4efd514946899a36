"""A `tokenizer.json` (the PyPI package `tokenizers`): from texts to arrays of one length.

N: texts; L: tokens of each, padded or cut; V: tokens that there are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Arrays, Faults, Field, Ints, Vocabulary
from pipeline.datasets.params import Params
from pipeline.user_code import said
from schemas.errors import ConfigError, ManifestMismatch

PADS = ("[PAD]", "<pad>", "<|padding|>", "<|pad|>")
MASKS = ("[MASK]", "<mask>", "<|mask|>")
"""What tokenizers call the token that fills up, and the one that hides another."""
MAX_LENGTH = 1 << 20
PER_TOKEN = 64
"""Characters of a text that are looked at for each of its L tokens; what lies behind is never tokenised."""

Text = str | tuple[str, str]


def need_tokenizers(what: str) -> Any:
    """The package. Raises ConfigError where it is not installed.

    It would share a batch among all cores, beside loaders and workers that share them out already, and warn of that
    where a process forks: so it does that only where the environment asks for it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(f"{what} needs the package tokenizers: pip install 'distillog[text]'") from error
    return tokenizers


class Tokens:
    """One tokenizer with one length; several threads may use it at once, since nothing of it changes.

    Padding and truncation are those asked for here, whatever the file says of them.

    Raises ConfigError where there is no such file, it is no tokenizer, or it has no token to pad with;
    ManifestMismatch where its SHA-256 is not the one that is pinned.
    """

    def __init__(self, dataset: str, file: Path, length: int, pad: str = "", pinned: str = "") -> None:
        package = need_tokenizers(f"dataset {dataset}")
        self.length = length
        if not file.is_file():
            raise ConfigError(
                f"dataset {dataset}: no tokenizer {file}: name a tokenizer.json with tokenizer=PATH, or make one by "
                "`distillog tokenizer train`"
            )
        content = file.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if pinned not in ("", sha256):
            raise ManifestMismatch(
                f"dataset {dataset}: tokenizer {file} has SHA-256 {sha256[:16]}... here, {pinned[:16]}... is pinned: "
                "another vocabulary gives other token IDs; bring the tokenizer.json that the stream was created with"
            )
        try:
            self._tokenizer = package.Tokenizer.from_buffer(content)
        except Exception as error:  # what the package raises is of no kind of its own
            raise ConfigError(f"dataset {dataset}: {file} is no tokenizer.json: {said(error)}") from error
        name = pad or (self._tokenizer.padding or {}).get("pad_token", "") or self._first(PADS)
        pad_id = self._tokenizer.token_to_id(name) if name else None
        if pad_id is None:
            known = f"no token {name!r}" if name else f"no padding token ({', '.join(PADS)})"
            raise ConfigError(f"dataset {dataset}: {file} has {known}: name one of its tokens with pad=TOKEN")
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        mask_id = self._tokenizer.token_to_id(self._first(MASKS))
        self.vocabulary = Vocabulary(sha256, size, -1 if mask_id is None else mask_id)
        self.pad_id: int = pad_id
        template = self._tokenizer.num_special_tokens_to_add(True)
        if length <= template:  # the package would not cut anything then
            raise ConfigError(
                f"dataset {dataset}: length={length} does not fit {file}, which adds {template} tokens of its own "
                "to a pair of texts: give more"
            )
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=name)

    def _first(self, names: Sequence[str]) -> str:
        return next((name for name in names if self._tokenizer.token_to_id(name) is not None), "")

    @property
    def fields(self) -> dict[str, Field]:
        """What `encode` gives of each text."""
        return {
            "input_ids": Field((self.length,), "int64"),
            "attention_mask": Field((self.length,), "int64"),
            "token_type_ids": Field((self.length,), "int64"),
            "words": Field((self.length,), "int32"),
        }

    def encode(self, texts: Sequence[Text]) -> tuple[Arrays, Ints, Faults]:
        """Texts, or pairs of them, as arrays [M, L], the rows of those that could be encoded, and why others not.

        `input_ids`, `attention_mask` (0 where padded) and `token_type_ids` (1 in a pair's second text) are int64, as
        transformers take them; `words` int32 numbers the words from 1, 0 for tokens of none (special ones, padding).
        """
        rows, faults = list(range(len(texts))), []
        texts = [self._cut(text) for text in texts]
        try:
            encoded = self._tokenizer.encode_batch(texts)
        except Exception:  # one text may have no encoding: a lone surrogate, or nothing stands for what is unknown
            encoded, rows = [], []
            for row, text in enumerate(texts):
                try:
                    encoded += self._tokenizer.encode_batch([text])
                    rows.append(row)
                except Exception as error:
                    faults.append((row, f"the tokenizer does not take it: {said(error)}"))
        shape = len(encoded), self.length
        numbers = np.zeros(shape, np.int32)
        arrays: Arrays = {
            "input_ids": _filled([each.ids for each in encoded], shape),
            "attention_mask": _filled([each.attention_mask for each in encoded], shape),
            "token_type_ids": _filled([each.type_ids for each in encoded], shape),
            "words": numbers,
        }
        for row, each in enumerate(encoded):
            # A pair's second text has its own word 0.
            behind = [self.length * (part or 0) for part in each.sequence_ids] if each.n_sequences > 1 else None
            words = [0 if word is None else word + 1 for word in each.word_ids]
            if behind is not None:
                words = [word and word + before for word, before in zip(words, behind, strict=True)]
            numbers[row] = words
        return arrays, np.array(rows, np.int64), tuple(faults)

    @property
    def most_characters(self) -> int:
        """Of a text that are looked at."""
        return PER_TOKEN * self.length

    def _cut(self, text: Text) -> Text:
        most = self.most_characters
        return text[:most] if isinstance(text, str) else (text[0][:most], text[1][:most])

    def continuing(self) -> npt.NDArray[np.bool_]:
        """[V]: tokens that go on with the word of the token before, by the spelling of WordPiece or byte-level BPE.

        Where no token is spelled in either way, each is a word of its own. Special tokens are of no word.
        """
        spelled = [self._tokenizer.id_to_token(number) or "" for number in range(self.vocabulary.size)]
        pieces = np.array([token.startswith("##") for token in spelled])
        spaced = np.array([token.startswith(("Ġ", "▁", "Ċ")) for token in spelled])
        return pieces if pieces.any() or not spaced.any() else ~spaced

    def special(self) -> npt.NDArray[np.bool_]:
        """[V]: tokens that are no part of any text."""
        found = np.zeros(self.vocabulary.size, bool)
        for number, token in self._tokenizer.get_added_tokens_decoder().items():
            found[number] = token.special
        found[self.pad_id] = True
        return found


def tokens_of(dataset: str, taken: Params, folder: Path | None) -> Tokens | None:
    """The tokenizer that a URI's parameters name, else `tokenizer.json` in `folder`; None while there is no folder.

    Takes `tokenizer`, `vocabulary`, `length` and `pad`. Raises ConfigError, ManifestMismatch.
    """
    file, pinned = taken.text("tokenizer", ""), taken.text("vocabulary", "")
    length, pad = taken.number("length", 128, 1, MAX_LENGTH), taken.text("pad", "")
    taken.done()
    if folder is None:
        return None
    return Tokens(dataset, Path(file) if file else folder / "tokenizer.json", length, pad, pinned)


def _filled(rows: list[list[int]], shape: tuple[int, int]) -> Ints:
    return np.array(rows, np.int64).reshape(shape)
