"""Softmax in log space, in float64: what is near 0 or 1 keeps its digits. Letters: M rows, C classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schemas.columns import FloatArray

LEAST_LOG_PROB = -700.0
"""The lowest that `log_softmax` gives: exp of it is not 0 yet, so that 0 * log 0 cannot arise."""


def log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    """Return [M, C] log-probabilities of [M, C] logits, each row with at least one that is finite."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return np.maximum(values, LEAST_LOG_PROB)


def logsumexp(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return [...] of [..., C]; -inf for a row of -inf."""
    peak = logits.max(axis=-1)
    finite = np.where(np.isneginf(peak), 0.0, peak)
    with np.errstate(divide="ignore"):
        total: npt.NDArray[np.float64] = finite + np.log(np.exp(logits - finite[..., None]).sum(axis=-1))
    return total
