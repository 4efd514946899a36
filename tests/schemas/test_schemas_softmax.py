"""Softmax in log space, at both ends of what float32 holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from schemas.softmax import LEAST_LOG_PROB, log_softmax, logsumexp

HIGHEST = float(np.finfo(np.float32).max)


def test_probabilities_of_a_row_sum_to_one_wherever_its_logits_lie() -> None:
    logits = np.array([[0, 1, 2], [1e4, 1e4 + 1, 1e4 + 2], [-1e4, 1 - 1e4, 2 - 1e4], [0, 0, -np.inf]], np.float32)
    found = log_softmax(logits)
    assert found.dtype == np.float64
    assert np.exp(found).sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    assert found[0] == pytest.approx(found[1], abs=1e-12)
    assert found[0] == pytest.approx([each - math.log(1 + math.e + math.e**2) for each in (0, 1, 2)], abs=1e-12)


def test_a_log_probability_has_a_floor_above_the_log_of_nothing() -> None:
    found = log_softmax(np.array([[HIGHEST, -HIGHEST], [0.0, -np.inf]], np.float32))
    assert found.tolist() == [[0.0, LEAST_LOG_PROB], [0.0, LEAST_LOG_PROB]]
    assert math.exp(LEAST_LOG_PROB) > 0


def test_the_sum_of_a_row_of_nothing_is_nothing() -> None:
    found = logsumexp(np.array([[-np.inf, -np.inf], [1000.0, 1000.0]]))
    assert found.tolist() == [-math.inf, 1000.0 + math.log(2.0)]
