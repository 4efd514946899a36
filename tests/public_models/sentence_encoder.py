"""all-MiniLM-L6-v2 as its users have it: BERT of six layers, its published weights, its tokens, exported to ONNX.

Letters: B texts, L tokens of each, H = 384.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from public_models.english import sentences
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "sentences"))  # workers import this file as well

import encoder

LENGTH = 24
folder = encoder.folder


@cache
def _vocabulary() -> dict[str, int]:
    return {token: number for number, token in enumerate((folder() / "vocab.txt").read_text().splitlines())}


def tokens(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return IDs and mask [L] of a text, by WordPiece: each word as the longest pieces that the vocabulary has."""
    known = _vocabulary()
    pieces = ["[CLS]"]
    # Without accents, as BERT's uncased vocabulary is: Prüfer is Prufer.
    plain = "".join(each for each in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(each) != "Mn")
    for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain):
        begin, found = 0, []
        while begin < len(word):
            ends = range(len(word), begin, -1)
            prefix = "##" if begin else ""
            end = next((end for end in ends if prefix + word[begin:end] in known), None)
            if end is None:
                found = ["[UNK]"]
                break
            found.append(prefix + word[begin:end])
            begin = end
        pieces += found
    pieces = [*pieces[: LENGTH - 1], "[SEP]"]
    ids, mask = np.zeros(LENGTH, np.int64), np.zeros(LENGTH, np.int64)
    ids[: len(pieces)], mask[: len(pieces)] = [known[piece] for piece in pieces], 1
    return ids, mask


class Sentences:
    """Tokens and mask of sentences, in equal lengths."""

    thread_safe = True

    def __init__(self, first: int, count: int) -> None:
        self._sentences = sentences(first + count)[first:]

    def __len__(self) -> int:
        return len(self._sentences)

    def __getitem__(self, sample_id: int) -> dict[str, NDArray[Any]]:
        ids, mask = tokens(self._sentences[sample_id])
        return {"input_ids": ids, "attention_mask": mask}


def manual(first: str = "0", count: str = "400") -> Sentences:
    """What a dataset URI names."""
    return Sentences(int(first), int(count))


def student(input_shape: Any, num_classes: int, layers: int = 3) -> nn.Module:
    """What a run file names."""
    return encoder.Bert(layers)


def export_teacher(path: Path) -> Path:
    """Write it as ONNX: `input_ids` and `attention_mask` in, `last_hidden_state` and `sentence_embedding` out."""
    return encoder.export(encoder.teacher(), path, LENGTH)
