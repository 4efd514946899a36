"""The metric `neighbours` against loops written by hand, and at the ends of what is defined."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pipeline.datasets.base import ArrayDataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError
from student_trainer.evaluate import Inputs, evaluate
from student_trainer.run.metric_settings import MetricSettings
from student_trainer.scores import neighbours, seen

N = 40


def measured(student: NDArray[Any], teacher: NDArray[Any], batch_size: int = 7) -> dict[str, float]:
    size = len(student)
    data = ArrayDataset("data", {"row": np.arange(size)}, np.full(size, -1), (), 0)

    def rows(values: NDArray[Any]) -> Any:
        def give(inputs: Inputs) -> dict[str, NDArray[Any]]:
            return {"e": values[inputs["row"]]}

        return give

    metrics = (MetricSettings("neighbours"),)
    return evaluate(rows(student), Fetcher(data, view_spec("none", {})), batch_size, rows(teacher), metrics=metrics)


def drawn(width: int, seed: int, size: int = N) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(size, width)).astype(np.float32)


def cosine(vectors: NDArray[Any], i: int, j: int) -> float:
    of = [[float(each) for each in vectors[row]] for row in (i, j)]
    lengths = [math.sqrt(math.fsum(each * each for each in row)) for row in of]
    return math.fsum(a * b for a, b in zip(*of, strict=True)) / lengths[0] / lengths[1]


def by_hand(student: NDArray[Any], teacher: NDArray[Any]) -> dict[str, float]:
    size = len(student)

    def nearest(vectors: NDArray[Any], i: int) -> list[int]:
        return sorted((j for j in range(size) if j != i), key=lambda j: -cosine(vectors, i, j))[:10]

    def correlation(pairs: list[tuple[int, int]]) -> float:
        sides = ([cosine(vectors, *pair) for pair in pairs] for vectors in (student, teacher))
        return float(spearmanr(*sides).statistic)

    near, found = ([nearest(vectors, i) for i in range(size)] for vectors in (teacher, student))
    return {
        "num_samples": size,
        "num_vectors": size,
        "pair_spearman": correlation(list(combinations(range(size), 2))),
        "near_spearman": correlation([(i, j) for i in range(size) for j in near[i]]),
        "recall_at_1": sum(near[i][0] == found[i][0] for i in range(size)) / size,
        "recall_at_10": sum(len(set(near[i]) & set(found[i])) for i in range(size)) / size / 10,
    }


def test_it_is_what_loops_over_all_pairs_say_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = drawn(12, 0)
    student = (teacher @ drawn(5, 1, 12) + drawn(5, 2)) * np.geomspace(1e-3, 1e3, N)[:, None].astype(np.float32)
    expected = by_hand(student, teacher)
    assert 0.1 < expected["recall_at_1"] < 0.9
    assert 0.1 < expected["near_spearman"] < expected["pair_spearman"] < 0.9
    assert measured(student, teacher) == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(seen, "_AT_ONCE", 3 * N)  # rows are looked at three at once
    for batch_size in (1, 39, 1000):
        assert measured(student, teacher, batch_size) == pytest.approx(expected, abs=1e-5)


def test_a_turned_and_scaled_teacher_is_the_teacher_and_noise_is_near_nothing() -> None:
    teacher = drawn(6, 0, 300)
    turned, _ = np.linalg.qr(drawn(6, 3, 6))
    perfect = measured(3 * teacher @ turned.astype(np.float32), teacher, 50)
    assert perfect["recall_at_1"] == perfect["recall_at_10"] == 1.0
    assert min(perfect["pair_spearman"], perfect["near_spearman"]) > 0.9999
    other = measured(drawn(6, 9, 300), teacher, 50)
    assert abs(other["pair_spearman"]) < 0.05
    assert other["recall_at_10"] == pytest.approx(10 / 299, abs=0.02)


def test_of_many_vectors_pairs_are_drawn_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = drawn(12, 0, 400)
    student = teacher + drawn(12, 1, 400)
    whole = measured(student, teacher, 64)
    monkeypatch.setattr(neighbours, "_MOST_PAIRS", 20_000)
    first, second = neighbours._drawn(400)
    assert len(first) == 20_000
    assert not (first == second).any()
    assert set(first.tolist()) == set(second.tolist()) == set(range(400))
    some = measured(student, teacher, 64)
    assert some["pair_spearman"] != whole["pair_spearman"]
    assert some["pair_spearman"] == pytest.approx(whole["pair_spearman"], abs=0.02)
    assert measured(student, teacher, 9) == some
    assert {key: some[key] for key in ("near_spearman", "recall_at_1")} == {
        key: whole[key] for key in ("near_spearman", "recall_at_1")
    }


def test_a_vector_without_a_direction_counts_for_nobody() -> None:
    teacher, student = drawn(5, 0), drawn(5, 1)
    expected = measured(np.delete(student, [3, 8], 0), np.delete(teacher, [3, 8], 0))
    student[3], teacher[8] = 0, 0
    assert measured(student, teacher) == expected | {"num_samples": N}
    tiny = (student * np.float32(1e-30)).astype(np.float32)
    assert measured(tiny, teacher) == pytest.approx(measured(student, teacher), abs=1e-6)


def test_what_is_not_defined_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    one = drawn(5, 0, 1)
    assert measured(one, one) == {"num_samples": 1, "num_vectors": 1}
    assert measured(0 * one, one) == {"num_samples": 1, "num_vectors": 0}
    few = measured(drawn(5, 0, 6), drawn(5, 1, 6))
    assert set(few) == {"num_samples", "num_vectors", "pair_spearman", "near_spearman", "recall_at_1"}
    equal = np.ones((20, 4), np.float32)
    assert set(measured(equal, drawn(4, 0, 20))) == {"num_samples", "num_vectors", "recall_at_1", "recall_at_10"}
    assert "the student's are all equal, of 190 cosines" in caplog.text


@pytest.mark.parametrize(
    ("student", "teacher", "says"),
    [
        (np.zeros((3, 2, 4), np.float32), np.zeros((3, 4), np.float32), r"student gives float32 of \[N, 2, 4\]"),
        (np.zeros((3, 4), np.float32), np.zeros(3, np.float32), r"teacher gives float32 of \[N\]"),
        (np.zeros((3, 4), int), np.zeros((3, 4), np.float32), r"student gives int64 of \[N, 4\]"),
    ],
)
def test_anything_but_a_vector_a_sample_is_refused(student: NDArray[Any], teacher: NDArray[Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"metric neighbours: the {says}: compare one vector a sample"):
        measured(student, teacher)
