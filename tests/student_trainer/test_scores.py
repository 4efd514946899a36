"""Each metric against loops written by hand, in batches of any size, and at the ends of what is defined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.datasets.base import ArrayDataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError, NotFinite
from student_trainer.evaluate import Inputs, evaluate
from student_trainer.run.metric_settings import MetricSettings
from student_trainer.scores import seen as seen_module
from student_trainer.scores.metrics import METRICS
from student_trainer.scores.ranks import pearson, ranks

Arrays = Mapping[str, NDArray[Any]]
N, L, C, H = 23, 5, 7, 6
BATCHES = [1, 4, 22, 23, 1000]


def fetcher(fields: Arrays, labels: NDArray[Any] | None = None, num_classes: int = 0) -> Fetcher:
    size = len(next(iter(fields.values())))
    labels = np.full(size, -1) if labels is None else labels
    return Fetcher(ArrayDataset("data", dict(fields), labels, (), num_classes), view_spec("none", {}))


class Prepared:
    """Gives the rows of arrays in turn, as a model would of samples."""

    def __init__(self, **outputs: NDArray[Any]) -> None:
        self._outputs, self._at = outputs, 0

    def __call__(self, inputs: Inputs) -> Arrays:
        here = slice(self._at, self._at + len(next(iter(inputs.values()))))
        self._at = here.stop
        return {name: values[here] for name, values in self._outputs.items()}


def scores(
    name: str,
    outputs: Arrays,
    data: Fetcher,
    taught: Arrays | None = None,
    batch_size: int = 4,
    key: str = "",
    **params: Any,
) -> dict[str, float]:
    teacher = None if taught is None else Prepared(**taught)
    chosen = (MetricSettings(name, key, params),)
    return evaluate(Prepared(**outputs), data, batch_size, teacher, metrics=chosen)


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def log_softmax(row: NDArray[Any]) -> list[float]:
    values = [float(each) for each in row]
    total = math.log(math.fsum(math.exp(each - max(values)) for each in values)) + max(values)
    return [each - total for each in values]


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", BATCHES)
def test_classes_and_agreement_are_what_a_loop_says(batch_size: int) -> None:
    student, teacher = draw(N, C), draw(N, C, seed=1)
    labels = np.random.default_rng(2).integers(-1, C, N)
    data = fetcher({"x": draw(N, 2)}, labels, C)
    found = evaluate(Prepared(logits=student), data, batch_size, Prepared(logits=teacher))
    p, q = [log_softmax(row) for row in teacher], [log_softmax(row) for row in student]
    labelled = [(row, int(label)) for row, label in enumerate(labels) if label >= 0]
    confidence = [math.exp(max(q[row])) for row, _ in labelled]
    hits = [q[row][label] == max(q[row]) for row, label in labelled]
    gap = 0.0
    for number in range(15):
        inside = [i for i, each in enumerate(confidence) if min(int(each * 15), 14) == number]
        gap += abs(sum(confidence[i] for i in inside) - sum(hits[i] for i in inside))
    five = [sorted(range(C), key=lambda c, row=row: -q[row][c])[:5] for row in range(N)]
    expected = {
        "num_samples": N,
        "num_labelled": len(labelled),
        "num_commonest": max(np.bincount(labels[labels >= 0])),
        "accuracy": sum(hits) / len(labelled),
        "nll": -math.fsum(q[row][label] for row, label in labelled) / len(labelled),
        "ece": gap / len(labelled),
        "agreement_top1": sum(np.argmax(p[row]) == np.argmax(q[row]) for row in range(N)) / N,
        "agreement_top5": sum(np.argmax(p[row]) in five[row] for row in range(N)) / N,
        "kl": math.fsum(math.exp(a) * (a - b) for row in range(N) for a, b in zip(p[row], q[row], strict=True)) / N,
        "teacher_accuracy": sum(p[row][label] == max(p[row]) for row, label in labelled) / len(labelled),
    }
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_one_sample_and_no_label_leave_out_what_is_not_defined() -> None:
    one = draw(1, C)
    found = evaluate(Prepared(logits=one), fetcher({"x": draw(1, 2)}), 8, Prepared(logits=one))
    expected = {"num_samples": 1, "num_labelled": 0, "agreement_top1": 1.0, "agreement_top5": 1.0, "kl": 0.0}
    assert found == expected


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("places", [(), (L,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [np.int64, np.int16])
def test_the_nll_of_positions_is_what_a_loop_says(
    batch_size: int, places: tuple[int, ...], dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_module, "_AT_ONCE", 3 * C)
    logits, labels = draw(N, *places, C), np.random.default_rng(3).integers(-1, C, (N, *places)).astype(dtype)
    logits[..., 0] = -np.inf  # a class that cannot be
    logits[labels < 0] = np.nan  # rows that nobody looks at
    data = fetcher({"x": draw(N, 2), "truth": labels})
    found = scores("position_nll", {"logits": logits}, data, batch_size=batch_size, labels="truth")
    pairs = [(log_softmax(logits[at]), int(labels[at])) for at in np.ndindex(labels.shape) if labels[at] >= 0]
    nll = -math.fsum(max(row[label], -700.0) for row, label in pairs) / len(pairs)
    hits = sum(row[label] == max(row) for row, label in pairs)
    expected = {
        "num_samples": N, "num_positions": len(pairs), "position_nll": nll, "perplexity": math.exp(nll),
        "position_accuracy": hits / len(pairs),
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-12)


def test_without_a_labelled_position_only_their_count_is_given() -> None:
    data = fetcher({"truth": np.full((2, L), -1)})
    found = scores("position_nll", {"logits": np.full((2, L, C), np.nan)}, data, labels="truth")
    assert found == {"num_samples": 2, "num_positions": 0}


def test_a_certain_student_and_one_that_is_wrong_for_certain_have_finite_figures() -> None:
    data = fetcher({"truth": np.zeros((1, 1), int)})
    row = np.array([[[1e30, -1e30]]], np.float32)
    assert scores("position_nll", {"logits": row}, data, labels="truth")["perplexity"] == 1.0
    wrong = scores("position_nll", {"logits": -row}, data, labels="truth")
    assert (wrong["position_nll"], wrong["position_accuracy"]) == (700.0, 0.0)
    assert math.isfinite(wrong["perplexity"])


POSITION_FAULTS: dict[str, tuple[dict[str, Any], tuple[int, ...], NDArray[Any], str]] = {
    "no such field": ({"labels": "trut"}, (3, L, C), np.zeros((3, L), int), "no field 'trut': did you mean 'truth'"),
    "no such output": ({"on": "hidden"}, (3, L, C), np.zeros((3, L), int), "the student gives no 'hidden'"),
    "another length": ({}, (3, L, C), np.zeros((3, 4), int), r"rows of \[N, 5, 7\], .* labels of \[N, 4\]"),
    "no classes": ({}, (3, L), np.zeros((3, L), int), r"rows of \[N, 5\], .* of \[N, 5\]: each label needs one row"),
    "no whole numbers": ({}, (3, L, C), np.zeros((3, L), np.float32), "'truth' is float32: labels of positions are"),
    "no class": ({}, (3, L, C), np.eye(3, L, dtype=int) * 7, "label 7 in sample 0; there are labels from 0 to 6"),
    "another none": ({}, (3, L, C), np.eye(3, L, k=2, dtype=int) * -100, "label -100 in sample 0"),
    "rows amiss": ({}, (2, L, C), np.zeros((3, L), int), r"shape \[2, 5, 7\] for 3 samples: it has to give one row"),
}


@pytest.mark.parametrize("what", POSITION_FAULTS)
def test_what_does_not_fit_positions_is_refused_in_one_line(what: str) -> None:
    params, shape, truth, says = POSITION_FAULTS[what]
    with pytest.raises(ConfigError, match=f"^metric position_nll: .*{says}"):
        scores("position_nll", {"logits": draw(*shape)}, fetcher({"truth": truth}), **{"labels": "truth", **params})


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("places", [(), (L,), (2, 3)], ids=str)
def test_features_are_as_near_to_a_teachers_as_a_loop_says(
    batch_size: int, places: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_module, "_AT_ONCE", 3 * H)
    student, teacher = draw(N, *places, H), draw(N, *places, H, seed=1)
    student[3] = 0  # no direction
    data = fetcher({"x": draw(N, 2)})
    outputs = {"logits": draw(N, C), "hidden": student}
    found = scores("features", outputs, data, {"hidden": teacher}, batch_size, on="hidden")
    cosines, squares = [], []
    for at in np.ndindex((N, *places)):
        a, b = (list(map(float, each[at])) for each in (student, teacher))
        squares += [(x - y) ** 2 for x, y in zip(a, b, strict=True)]
        if any(a):
            dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
            cosines.append(dot / math.hypot(*a) / math.hypot(*b))
    expected = {
        "num_samples": N, "num_cosines": len(cosines), "cosine": math.fsum(cosines) / len(cosines),
        "mse": math.fsum(squares) / len(squares),
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-12)


def test_equal_features_are_equal_and_such_as_are_nothing_have_no_cosine() -> None:
    data, rows = fetcher({"x": draw(3, 2)}), draw(3, H, scale=1e18)
    assert scores("features", {"a": rows}, data, {"b": rows}) == {
        "num_samples": 3, "num_cosines": 3, "cosine": pytest.approx(1, abs=1e-15), "mse": 0.0,
    }  # fmt: skip
    found = scores("features", {"a": 0 * rows}, data, {"b": rows})
    assert (found["num_cosines"], "cosine" in found) == (0, False)


def test_features_of_another_shape_are_refused() -> None:
    data = fetcher({"x": draw(3, 2)})
    with pytest.raises(
        ConfigError, match=r"metric features: the student gives rows of \[N, 6\], the teacher of \[N, 7\]"
    ):
        scores("features", {"a": draw(3, 6)}, data, {"b": draw(3, 7)})


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize(("reduce", "by_hand"), [
    ("mean@1", lambda rows: rows.mean(axis=0)),
    ("first@1", lambda rows: rows[0]),
    ("attention@2", lambda rows: (rows**2).mean(axis=1)),
])  # fmt: skip
def test_a_students_features_are_reduced_as_a_teachers_were(batch_size: int, reduce: str, by_hand: Any) -> None:
    student, data = draw(N, L, H), fetcher({"x": draw(N, 2)})
    reduced = np.stack([by_hand(rows.astype(np.float64)) for rows in student])
    teacher = draw(*reduced.shape, seed=1)
    found = scores("features", {"a": student}, data, {"b": teacher}, batch_size, reduce=reduce)
    assert found == pytest.approx(scores("features", {"a": reduced}, data, {"b": teacher}), rel=1e-5)


@pytest.mark.parametrize(
    ("reduce", "says"),
    [
        ("mean", "reduction 'mean': write NAME@AXIS"),
        ("meen@1", "reduction 'meen@1': did you mean 'mean'"),
        ("mean@2", r"reduce: the student gives rows of \[N, 6\], mean@2 needs more"),
    ],
)
def test_a_reduction_that_does_not_fit_is_refused(reduce: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"metric features: {says}"):
        scores("features", {"a": draw(3, H)}, fetcher({"x": draw(3, 2)}), {"b": draw(3)}, reduce=reduce)


# --- tags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("places", [(), (L,), (2, 3)], ids=str)
@pytest.mark.parametrize("classes", [(), (0, 2, 3)], ids=str)
def test_tags_are_as_near_to_a_teachers_as_a_loop_says(
    batch_size: int, places: tuple[int, ...], classes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_module, "_AT_ONCE", 3 * C)
    student, teacher = draw(N, *places, C), draw(N, *places, len(classes) or C, seed=1)
    found = evaluate(
        Prepared(logits=draw(N, C), tags=student), fetcher({"x": draw(N, 2)}), batch_size, Prepared(t=teacher),
        metrics=(MetricSettings("tags", params={"on": "tags"}),), teacher_classes={"t": classes},
    )  # fmt: skip
    costs, differences = [], []
    for at in np.ndindex(N, *places):
        for number, logit in enumerate(teacher[at]):
            of_student = student[at][classes[number] if classes else number]
            p, q = (1 / (1 + math.exp(-float(each))) for each in (logit, of_student))
            costs.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
            differences.append(abs(p - q))
    rows = math.prod((N, *places))
    expected = {
        "num_samples": N, "num_tag_rows": rows, "binary_kl": math.fsum(costs) / rows,
        "tag_difference": math.fsum(differences) / len(differences),
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-9)


def test_certain_tags_have_finite_figures_and_equal_ones_none() -> None:
    data, rows = fetcher({"x": draw(2, 2)}), np.array([[1e30, -1e30], [0, 800]], np.float32)
    same = scores("tags", {"a": rows}, data, {"b": rows})
    assert same == {"num_samples": 2, "num_tag_rows": 2, "binary_kl": 0.0, "tag_difference": 0.0}
    wrong = scores("tags", {"a": -rows}, data, {"b": rows})
    assert (math.isfinite(wrong["binary_kl"]), wrong["tag_difference"]) == (True, 0.75)


@pytest.mark.parametrize(
    ("shape", "of_teacher", "classes", "says"),
    [
        ((3, 6), (3, 7), (), r"rows of \[N, 6\], the teacher of \[N, 7\]: compare logits of the same classes"),
        ((3, 6), (3, 2), (1, 6), r"rows of \[N, 6\], the teacher of \[N, 2\]"),
        ((3, 0), (3, 0), (), r"rows of \[N, 0\], the teacher of \[N, 0\]"),
        ((3,), (3,), (), r"rows of \[N\], the teacher of \[N\]"),
    ],
)
def test_tags_of_other_classes_are_refused(
    shape: tuple[int, ...], of_teacher: tuple[int, ...], classes: tuple[int, ...], says: str
) -> None:
    chosen = (MetricSettings("tags"),)
    with pytest.raises(ConfigError, match=f"metric tags: the student gives {says}"):
        evaluate(
            Prepared(a=draw(*shape)), fetcher({"x": draw(3, 2)}), 8, Prepared(b=draw(*of_teacher)),
            metrics=chosen, teacher_classes={"b": classes},
        )  # fmt: skip


# --- ranks ------------------------------------------------------------------------------------------------------------


def slow_spearman(x: list[float], y: list[float]) -> tuple[float, float]:
    """Spearman's and Pearson's coefficients, by their definitions alone."""

    def rank(values: list[float]) -> list[float]:
        return [1 + sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]

    def correlation(a: list[float], b: list[float]) -> float:
        of_a, of_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
        covariance = math.fsum((p - of_a) * (q - of_b) for p, q in zip(a, b, strict=True))
        return covariance / math.sqrt(math.fsum((p - of_a) ** 2 for p in a) * math.fsum((q - of_b) ** 2 for q in b))

    return correlation(rank(x), rank(y)), correlation(x, y)


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("shape", [(N,), (N, 1)], ids=str)
def test_rank_correlation_is_what_its_definition_says(batch_size: int, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(5)
    student = random.integers(0, 9, shape).astype(np.float32) / 3  # with many ties
    truth = (student.reshape(-1) + random.normal(0, 1, N)).round(1)
    truth[4] = np.nan  # no score
    found = scores("spearman", {"s": student}, fetcher({"truth": truth}), batch_size=batch_size, labels="truth")
    there = ~np.isnan(truth)
    of_ranks, of_scores = slow_spearman(student.reshape(-1)[there].astype(float).tolist(), truth[there].tolist())
    expected = {"num_samples": N, "num_scores": N - 1, "spearman": of_ranks, "pearson": of_scores}
    assert found == pytest.approx(expected, rel=1e-12)
    whole = fetcher({"truth": truth})
    assert scores("spearman", {"s": student}, whole, {"t": student}, batch_size, against="t")["spearman"] == 1.0


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=30))
@settings(max_examples=200, deadline=None)
def test_correlations_agree_with_their_definitions_at_any_scale(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(each, float) for each in zip(*pairs, strict=True))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return
    of_ranks, of_scores = slow_spearman(x.tolist(), y.tolist())
    assert pearson(ranks(x), ranks(y)) == pytest.approx(of_ranks, abs=1e-12)
    for scale in (1.0, 1e300, 1e-300):
        assert pearson(scale * x, y) == pytest.approx(of_scores, abs=1e-12)
        assert ranks(scale * x).tolist() == ranks(x).tolist()


@pytest.mark.parametrize(
    ("student", "truth", "says"),
    [
        ([1.0], [2.0], "1 samples have a score"),
        ([1.0, 2.0], [math.nan, math.nan], "0 samples have a score"),
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0], "the student's are all equal, of 3 scores"),
        ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1], "those to compare with are all equal, of 3 scores"),
    ],
    ids=["one sample", "no score", "a constant student", "constant labels"],
)
def test_a_correlation_that_is_not_defined_is_left_out_and_said(
    student: list[float], truth: list[float], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = scores("spearman", {"s": np.array(student)}, fetcher({"truth": np.array(truth)}), labels="truth")
    assert set(found) == {"num_samples", "num_scores"}
    assert says in caplog.text


RANK_FAULTS: dict[str, tuple[dict[str, str], tuple[int, ...], NDArray[Any], str]] = {
    "nothing to hold it against": ({}, (3,), np.zeros(3), "say what scores are held against"),
    "two things": ({"labels": "truth", "against": "x"}, (3,), np.zeros(3), "say what scores are held against"),
    "several numbers": ({"labels": "truth"}, (3, 2), np.zeros(3), r"the student gives float32 of \[N, 2\]: scores are"),
    "several labels": ({"labels": "truth"}, (3,), np.zeros((3, 4)), r"field 'truth' has float64 of \[N, 4\]: scores"),
    "no end": ({"labels": "truth"}, (3,), np.array([0, np.inf, 1]), "field 'truth' is infinite for sample 1"),
}


@pytest.mark.parametrize("what", RANK_FAULTS)
def test_what_is_no_score_is_refused_in_one_line(what: str) -> None:
    params, shape, truth, says = RANK_FAULTS[what]
    with pytest.raises(ConfigError, match=f"^metric spearman: {says}"):
        scores("spearman", {"s": draw(*shape)}, fetcher({"truth": truth}), {"x": draw(3)}, **params)


# --- all of them ------------------------------------------------------------------------------------------------------

OF_ONE = {
    "classes": ({"logits": draw(N, C)}, {}),
    "agreement": ({"logits": draw(N, C)}, {}),
    "position_nll": ({"logits": draw(N, L, C)}, {"labels": "places"}),
    "features": ({"logits": draw(N, H)}, {}),
    "neighbours": ({"logits": draw(N, H)}, {}),
    "spearman": ({"logits": draw(N)}, {"labels": "truth"}),
    "tags": ({"logits": draw(N, C)}, {}),
}
"""What each may be asked of a student."""
DATA = fetcher({"places": np.zeros((N, L), int), "truth": np.arange(N)}, np.zeros(N, int), C)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_gives_what_it_says_and_its_key_stands_before_each_figure(name: str) -> None:
    outputs, params = OF_ONE[name]
    plain = scores(name, outputs, DATA, outputs, **params)
    assert set(plain) == {"num_samples", *METRICS[name](**params).gives}
    keyed = scores(name, outputs, DATA, outputs, key="mine", **params)
    assert keyed == {key if key == "num_samples" else f"mine.{key}": value for key, value in plain.items()}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_told_with_its_sample(name: str, bad: float) -> None:
    outputs, params = OF_ONE[name]
    spoilt = {"logits": outputs["logits"].copy()}
    spoilt["logits"][9] = bad
    says = "dataset data: the student gives NaN or infinity for 1 of 4 samples, the first is sample 9"
    with pytest.raises(NotFinite, match=says):
        scores(name, spoilt, DATA, outputs, **params)
    if name in ("agreement", "features", "neighbours", "tags"):
        with pytest.raises(NotFinite, match=says.replace("student", "teacher")):
            scores(name, outputs, DATA, spoilt, **params)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_refuses_keys_that_it_does_not_have_and_values_that_are_no_texts(name: str) -> None:
    outputs, params = OF_ONE[name]
    with pytest.raises(ConfigError, match=f"metric {name}: key 'onn' is unknown: did you mean 'on'"):
        scores(name, outputs, DATA, outputs, **params, onn="x")
    with pytest.raises(ConfigError, match=f"metric {name}: on must be a text, is 3"):
        scores(name, outputs, DATA, outputs, **params, on=3)


def seventh_is_broken(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A view under which one sample has none."""
    if sample["truth"] == 7:
        raise ValueError("cut short")
    return sample


@pytest.mark.parametrize("name", METRICS)
def test_a_sample_that_cannot_be_decoded_is_left_out_of_every_figure(name: str) -> None:
    outputs, params = OF_ONE[name]
    truth = np.arange(200) % N
    truth[truth == 7] = 8
    truth[3] = 7
    data = ArrayDataset("data", {"truth": truth, "places": np.zeros((200, L), int)}, np.zeros(200, int), (), C)
    many = {"logits": np.concatenate([outputs["logits"]] * 9)[:199]}
    found = scores(name, many, Fetcher(data, view_spec(f"{__name__}:seventh_is_broken", {})), many, 50, **params)
    without = ArrayDataset(
        "data",
        {each: np.delete(values, 3, axis=0) for each, values in data.arrays.items()},
        np.zeros(199, int), (), C,
    )  # fmt: skip
    assert found == pytest.approx(
        scores(name, many, Fetcher(without, view_spec("none", {})), many, 50, **params), rel=1e-12
    )
    assert found["num_samples"] == 199


def test_two_metrics_of_one_figure_need_a_key() -> None:
    both = (MetricSettings("classes"), MetricSettings("classes", params={"on": "other"}))
    outputs = {"logits": draw(N, C), "other": draw(N, C), "tokens": draw(N, L, C)}
    with pytest.raises(ConfigError, match="metrics classes and classes both give 'num_labelled': give one a `key`"):
        evaluate(Prepared(**outputs), DATA, 5, metrics=both)
    keyed = (both[0], MetricSettings("classes", "other", {"on": "other"}))
    found = evaluate(Prepared(**outputs), DATA, 5, metrics=keyed)
    assert {"nll", "other.nll", "num_labelled", "other.num_labelled"} < set(found)
    of_positions = MetricSettings("position_nll", params={"labels": "places", "on": "tokens"})
    assert {"nll", "position_nll"} < set(evaluate(Prepared(**outputs), DATA, 5, metrics=(both[0], of_positions)))


def test_a_metric_is_found_by_its_name_or_the_nearest_is_said() -> None:
    with pytest.raises(ConfigError, match=r"\[\[evaluation.metrics\]\]: metric 'fetures' is unknown: .*'features'"):
        evaluate(Prepared(logits=draw(N, C)), DATA, 5, metrics=[MetricSettings("fetures")])
    with pytest.raises(ConfigError, match="metric position_nll: 'labels' is missing"):
        evaluate(Prepared(logits=draw(N, C)), DATA, 5, metrics=[MetricSettings("position_nll")])
    with pytest.raises(ConfigError, match="compare with a teacher"):
        evaluate(Prepared(logits=draw(N, C)), DATA, 5, metrics=[MetricSettings("agreement")])


def test_a_student_of_no_row_of_classes_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"metric classes: the student gives rows of \[N, 5, 7\], not one row of"):
        evaluate(Prepared(logits=draw(N, L, C)), DATA, 5)
