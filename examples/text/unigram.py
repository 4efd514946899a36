"""What the masked language models are held against: the unigram model, on the very positions that they are asked for.

It says of each hidden token how often it stands in the training's texts, whatever stands around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class UnigramNll:
    """A metric of a run: `unigram_nll`, mean over all labelled positions, in nats. Each token counts once more."""

    def __init__(self, tokens: str, tokenizer: str, labels: str = "labels") -> None:
        """`tokens`: file of the training's token IDs [T], with its `tokenizer`; `labels`: the view's field."""
        from tokenizers import Tokenizer

        file = Tokenizer.from_file(tokenizer)
        counts = np.bincount(np.load(tokens), minlength=file.get_vocab_size()) + 1.0
        # No view hides these, so that no share of the probability is to be theirs.
        special = [number for number, each in file.get_added_tokens_decoder().items() if each.content != "[UNK]"]
        counts[special] = 0.0
        with np.errstate(divide="ignore"):
            self._nll = -np.log(counts / counts.sum())
        self._labels = labels
        self._sum, self._count = 0.0, 0

    def update(self, outputs: Mapping[str, NDArray[Any]], inputs: Mapping[str, NDArray[Any]], labels: Any) -> None:
        """Take a batch; of its outputs nothing is looked at."""
        field = inputs[self._labels]
        hidden = field[field >= 0]
        self._sum += float(self._nll[hidden].sum())
        self._count += len(hidden)

    def compute(self) -> dict[str, float]:
        """Return the figure; nothing where no token was hidden."""
        return {"unigram_nll": self._sum / self._count} if self._count else {}
