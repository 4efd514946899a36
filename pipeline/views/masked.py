"""The "masked" and "next_token" views: what a language model of token IDs learns to say.

N: samples; L: tokens of each; V: tokens that there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Arrays, Ints, Vocabulary
from pipeline.hashing import bits, integers, uniform
from schemas.errors import ConfigError

KEPT, SWAPPED = 0.1, 0.1
"""Of the chosen tokens: how many stay as they are, and how many become another one, drawn from all."""


def masked(
    samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
) -> Arrays:
    """Hide whole words, as BERT does (Devlin et al. 2019; whole words: its release of May 2019).

    Words are taken by rising draws, each if the budget holds all of its tokens: `share` of a sample's tokens that are
    of words, rounded, at least 1 and at most `most`. Of the tokens taken 80 % become `mask_id`, 10 % a token drawn
    from `vocab_size`, and 10 % stay, each by a draw of its own.

    Takes the fields `input_ids` [N, L] and `words` [N, L] (0: of no word). Gives `input_ids` with tokens hidden,
    `masked` [N, L] uint8 (1 where a token was taken), `labels` [N, L] int64 (the token that was taken, else -1), and
    all other fields but `words`. Ignores `size`. Raises ConfigError where there are no such fields.
    """
    ids, words = samples.get("input_ids"), samples.get("words")
    if ids is None or words is None or ids.ndim != 2 or ids.shape != words.shape:
        raise ConfigError(
            f"view masked needs the fields input_ids and words of texts, the dataset has {', '.join(sorted(samples))}"
        )
    length = ids.shape[1]
    taken = _taken(words, sample_ids, view_seed, params["share"], int(params["most"]))
    how = uniform(view_seed, sample_ids, "masked.how", length)
    other = integers(view_seed, sample_ids, "masked.token", length, int(params["vocab_size"]))
    hidden = np.where(how < 1.0 - KEPT - SWAPPED, np.int64(params["mask_id"]), np.where(how < 1.0 - KEPT, other, ids))
    fields = {name: values for name, values in samples.items() if name != "words"}
    return fields | {
        "input_ids": np.where(taken, hidden, ids).astype(ids.dtype),
        "masked": taken.astype(np.uint8),
        "labels": np.where(taken, ids, -1).astype(np.int64),
    }


def _taken(words: npt.NDArray[Any], sample_ids: Ints, view_seed: int, share: float, most: int) -> npt.NDArray[np.bool_]:
    """[N, L]: the tokens of the words that are taken."""
    count = len(words)
    # Numbered anew from 1, in their order: a dataset may leave numbers out.
    begins = (words > 0) & np.concatenate([np.ones((count, 1), bool), words[:, 1:] != words[:, :-1]], axis=1)
    word = np.where(words > 0, np.cumsum(begins, axis=1), 0)
    budget = np.clip(np.floor(share * (word > 0).sum(axis=1) + 0.5).astype(np.int64), 1, most)
    num_words = int(word.max(initial=0))
    sizes = np.zeros((count, num_words + 1), np.int64)
    np.add.at(sizes, (np.arange(count)[:, None], word), 1)
    sizes[:, 0] = 0
    draws = bits(view_seed, sample_ids, "masked.word", num_words + 1)
    draws[sizes == 0] = np.iinfo(np.uint64).max  # words that a sample does not have come last
    order = np.argsort(draws, axis=1, kind="stable")
    rows, spent = np.arange(count), np.zeros(count, np.int64)
    chosen = np.zeros((count, num_words + 1), bool)
    for place in range(num_words):
        number = order[:, place]
        cost = sizes[rows, number]
        fits = (cost > 0) & (spent + cost <= budget)
        chosen[rows, number] |= fits
        spent += np.where(fits, cost, 0)
        if not (spent < budget).any():
            break
    chosen[:, 0] = False
    return np.take_along_axis(chosen, word, axis=1)


def next_token(
    samples: Arrays, sample_ids: Ints, view_seed: int, params: dict[str, Any], size: tuple[int, ...] | None
) -> Arrays:
    """What follows each token, for causal models: nothing is drawn, and no token is changed.

    Takes `input_ids` and `attention_mask` [N, L]. Gives beside all fields but `words`: `labels` [N, L] int64, the next
    token (-1 for the last one, and where the next is padding), and `predicts` [N, L] uint8, 1 where there is a label.
    Ignores seed and `size`. Raises ConfigError where there are no such fields.
    """
    ids, mask = samples.get("input_ids"), samples.get("attention_mask")
    if ids is None or mask is None or ids.ndim != 2 or ids.shape != mask.shape:
        raise ConfigError(
            "view next_token needs the fields input_ids and attention_mask of texts, the dataset has "
            f"{', '.join(sorted(samples))}"
        )
    labels = np.full(ids.shape, -1, np.int64)
    labels[:, :-1] = np.where((mask[:, 1:] != 0) & (mask[:, :-1] != 0), ids[:, 1:], -1)
    fields = {name: values for name, values in samples.items() if name != "words"}
    return fields | {"labels": labels, "predicts": (labels >= 0).astype(np.uint8)}


def of_vocabulary(params: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """The parameters of `masked` with those that the dataset knows, where the user says none (-1).

    Raises ConfigError where nobody says them, or the mask is none of the tokens.
    """
    found = dict(params)
    if found["vocab_size"] < 0:
        found["vocab_size"] = vocabulary.size
    if found["mask_id"] < 0:
        found["mask_id"] = vocabulary.mask_id
    if found["vocab_size"] < 1:
        raise ConfigError("view masked: the dataset does not say how many tokens there are: give vocab_size")
    if found["mask_id"] < 0:
        raise ConfigError("view masked: the dataset's tokenizer has no [MASK] or <mask>: give mask_id")
    if found["mask_id"] >= found["vocab_size"]:
        raise ConfigError(f"view masked: mask_id {found['mask_id']} is none of {found['vocab_size']} tokens")
    return found
