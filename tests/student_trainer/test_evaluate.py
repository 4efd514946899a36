from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import nn
from train_runs import digits_run, run

from pipeline.cli import main
from pipeline.datasets import open_dataset
from pipeline.datasets.base import ArrayDataset, Arrays
from pipeline.views import view_spec
from pipeline.views.fetch import Fetched, Fetcher
from schemas.errors import ConfigError
from student_trainer.evaluate import Inputs, chance_level, evaluate, evaluation_data


@pytest.fixture(scope="module")
def fetcher() -> Fetcher:
    return Fetcher(open_dataset("digits?split=test"), view_spec("none", {}))


def labels(fetcher: Fetcher) -> NDArray[np.int64]:
    return fetcher.dataset.labels(np.arange(fetcher.dataset.num_samples))


class Oracle:
    """Gives prepared logits, batch by batch."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits, self._at = logits, 0

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        count = len(inputs["image"])
        self._at += count
        return self._logits[self._at - count : self._at]


def confident(fetcher: Fetcher, logit: float) -> NDArray[np.float32]:
    return np.eye(10, dtype=np.float32)[labels(fetcher)] * np.float32(logit)


@pytest.mark.parametrize("batch_size", [1, 7, 500, 1000])
def test_the_right_answer_scores_perfectly_in_any_batch(fetcher: Fetcher, batch_size: int) -> None:
    scores = evaluate(Oracle(confident(fetcher, 1e4)), fetcher, batch_size)
    counts = {"num_samples": 500, "num_labelled": 500, "num_commonest": int(np.bincount(labels(fetcher)).max())}
    assert scores == {**counts, "accuracy": 1.0, "nll": 0.0, "ece": 0.0}


@pytest.mark.parametrize(
    ("accuracy", "commonest", "labelled", "says"),
    [
        (0.1, 60, 500, "no better than always naming the commonest class, which is right for 12.0%"),
        (0.13, 60, 500, "no better"),  # within two standard errors, of 1.45 % each
        (0.16, 60, 500, ""),
        (0.91, 450, 500, "no better"),
        (0.94, 450, 500, ""),
        (1.0, 500, 500, ""),  # a dataset of one class says nothing
        (1.0, 19, 20, ""),  # nothing can be better
    ],
)
def test_a_student_at_chance_is_called_so(accuracy: float, commonest: int, labelled: int, says: str) -> None:
    scores = {"num_labelled": labelled, "num_commonest": commonest, "accuracy": accuracy}
    assert chance_level(scores).startswith(says)
    assert bool(chance_level(scores)) == bool(says)


def test_a_student_without_labels_to_evaluate_on_is_called_nothing() -> None:
    assert chance_level({}) == chance_level({"num_samples": 5, "num_labelled": 0}) == ""


def test_equal_logits_score_as_a_guess(fetcher: Fetcher) -> None:
    scores = evaluate(Oracle(np.zeros((500, 10), np.float32)), fetcher, 64)
    assert scores["nll"] == pytest.approx(np.log(10))
    share = float((labels(fetcher) == 0).mean())
    assert scores["accuracy"] == pytest.approx(share)
    assert scores["ece"] == pytest.approx(abs(share - 0.1))


def test_a_teacher_adds_agreement_and_divergence(fetcher: Fetcher) -> None:
    student, teacher = confident(fetcher, 2.0), confident(fetcher, 3.0)
    teacher[:100] = np.roll(teacher[:100], 1, axis=1)
    scores = evaluate(Oracle(student), fetcher, 64, Oracle(teacher))
    assert scores["agreement_top1"] == pytest.approx(0.8)
    assert 0.8 <= scores["agreement_top5"] <= 1
    assert scores["teacher_accuracy"] == pytest.approx(0.8)

    def log_softmax(values: NDArray[np.float32]) -> NDArray[np.float64]:
        return values - np.log(np.exp(values.astype(np.float64)).sum(axis=1, keepdims=True))

    p, q = log_softmax(teacher), log_softmax(student)
    assert scores["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-6)
    assert evaluate(Oracle(student), fetcher, 64, Oracle(student))["kl"] == 0


def test_a_module_is_evaluated_in_its_evaluation_mode_and_goes_on_training(fetcher: Fetcher) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.9)).train()
    assert evaluate(model, fetcher, 100) == pytest.approx(evaluate(model, fetcher, 33))
    assert model.training


def test_a_module_sees_no_more_samples_at_once_than_outputs_of_a_size_are_of(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    seen: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    whole = evaluate(model, fetcher, 100, model)
    assert max(seen) == 100
    seen.clear()
    monkeypatch.setattr("student_trainer.evaluate._OUTPUT_BYTES", 2 * 10 * 4 * 33)
    assert evaluate(model, fetcher, 100, model) == pytest.approx(whole)
    assert max(seen) == 33  # beside as many of its teacher
    monkeypatch.setattr("student_trainer.evaluate._OUTPUT_BYTES", 1)
    assert evaluate(model, fetcher, 3)["num_samples"] == 500


@pytest.mark.parametrize("classes", [5, 9])
def test_another_class_count_is_refused(fetcher: Fetcher, classes: int) -> None:
    with pytest.raises(ConfigError, match=f"10 classes, the student {classes}"):
        evaluate(Oracle(np.zeros((500, classes), np.float32)), fetcher, 64)
    with pytest.raises(ConfigError, match=f"the teacher gives {classes} classes, the student 10"):
        evaluate(Oracle(np.zeros((500, 10), np.float32)), fetcher, 64, Oracle(np.zeros((500, classes), np.float32)))


def test_a_label_beyond_the_students_classes_is_refused_in_one_line() -> None:
    dataset = ArrayDataset("birds", {"image": np.zeros((3, 1, 8, 8), np.float32)}, np.array([0, 12, 1]))
    with pytest.raises(ConfigError, match="birds has 13 classes, the student 10"):
        evaluate(Oracle(np.zeros((3, 10), np.float32)), Fetcher(dataset, view_spec("none", {})), 8)


def unrolled(sample: Arrays, rng: np.random.Generator) -> Arrays:
    """A picture of a row of numbers; none of sample 16."""
    if sample["pixels"][0] == 16:
        raise ValueError("no picture")
    return {"image": sample["pixels"].reshape(1, 8, 8)}


def test_a_batch_of_which_no_sample_has_a_view_is_left_out() -> None:
    pixels = np.repeat(np.arange(17, dtype=np.float32)[:, None], 64, axis=1)
    dataset = ArrayDataset("rows", {"pixels": pixels}, np.zeros(17, int))
    student = Oracle(np.eye(10, dtype=np.float32)[np.zeros(16, int)])
    scores = evaluate(student, Fetcher(dataset, view_spec(f"{__name__}:unrolled", {})), 8)
    assert (scores["num_samples"], scores["accuracy"]) == (16, 1.0)


def test_an_evaluation_keeps_what_a_users_view_says_that_stays() -> None:
    plain = open_dataset("digits?split=test").read(np.arange(9)).fields["image"]
    training = view_spec("support.user_data:told", {"mean": 0.25})
    seen = evaluation_data(digits_run(), training, "digits?split=test").fetch(np.arange(9), 0).inputs["image"]
    assert np.array_equal(seen, plain - np.float32(0.25))
    asked = digits_run(evaluation={"view": "none"})
    seen = evaluation_data(asked, training, "digits?split=test").fetch(np.arange(9), 0).inputs["image"]
    assert np.array_equal(seen, plain)


def whose(sample: Arrays, rng: np.random.Generator) -> Arrays:
    return {"process": np.array(os.getpid())}


def test_an_evaluations_loaders_are_processes_where_the_runs_are() -> None:
    settings = digits_run(train={"loaders": 2, "loader_processes": True}, evaluation={"view": f"{__name__}:whose"})
    fetcher = evaluation_data(settings, view_spec("none", {}), "digits?split=test")
    fetcher.fetch(np.arange(1), 0)  # the first of all is this process's
    processes = fetcher.fetch(np.arange(200), 0).inputs["process"]
    fetcher.close()
    assert os.getpid() not in processes


def test_a_student_of_a_users_view_is_evaluated_and_exported_only_under_a_view_that_somebody_named(
    tmp_path: Path,
) -> None:
    run(tmp_path / "r", digits_run(data={"view": "support.user_data:dimmed"}))
    for command in ("evaluate", "export"):
        arguments = ["runs", command, "r", "--folder", str(tmp_path), "--dataset", "digits?split=test", "--json"]
        refused = CliRunner().invoke(main, arguments)
        assert refused.exit_code == 1
        assert "dimmed.evaluation = " in refused.stderr
        assert "--view" in refused.stderr
        named = [*arguments, "--view", "support.user_data:dimmed", "--view-param", "noise=0"]
        found = CliRunner().invoke(main, named)
        assert found.exit_code == 0, found.stderr
        assert json.loads(found.stdout)
    assert CliRunner().invoke(main, [*arguments, "--view-param", "noise=0"]).exit_code == 2


def test_no_sample_is_fetched_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "r", digits_run())
    fetched: list[int] = []
    really = Fetcher.fetch

    def fetch(fetcher: Fetcher, sample_ids: NDArray[np.int64], *arguments: Any) -> Fetched:
        fetched.extend(sample_ids.tolist())
        return really(fetcher, sample_ids, *arguments)

    monkeypatch.setattr(Fetcher, "fetch", fetch)
    for command, count in (("evaluate", 500), ("export", 256)):
        fetched.clear()
        arguments = ["runs", command, "r", "--folder", str(tmp_path), "--dataset", "digits?split=test"]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        assert fetched == list(range(count))


def npy(folder: Path, image: NDArray[Any], num_classes: int = 10) -> str:
    folder.mkdir()
    np.save(folder / "image.npy", image)
    np.save(folder / "labels.npy", np.arange(len(image)) % num_classes)
    return f"npy:{folder}"


@pytest.mark.parametrize(
    ("image", "num_classes", "says"),
    [
        (np.zeros((30, 1, 9, 9), np.float32), 10, r"image float32\[1, 9, 9\] .* takes image float32\[1, 8, 8\]; give"),
        (np.zeros((30, 1, 8, 8), np.float64), 10, r"image float64\[1, 8, 8\] .* takes image float32\[1, 8, 8\]; give"),
        (np.zeros((30, 1, 8, 8), np.float32), 12, "has 12 classes, the student 10; evaluate on"),
    ],
    ids=["another size", "another dtype", "more classes"],
)
def test_an_evaluation_on_other_samples_is_refused_before_anything_is_computed(
    tmp_path: Path, image: NDArray[Any], num_classes: int, says: str
) -> None:
    uri = npy(tmp_path / "data", image, num_classes)
    evaluation = {"dataset": uri, "view": {"name": "none"}}
    with pytest.raises(ConfigError, match=rf"\[evaluation\] dataset {uri} .*{says}"):
        run(tmp_path / "refused", digits_run(evaluation=evaluation))
    assert not (tmp_path / "refused").exists()
    run(tmp_path / "r", digits_run())
    for command in ("evaluate", "export"):
        arguments = ["runs", command, "r", "--folder", str(tmp_path), "--dataset", uri, "--view", "none"]
        refused = CliRunner().invoke(main, arguments)
        assert refused.exit_code == 1
        assert re.search(rf"error: dataset {uri} .*{says}", refused.stderr)


def test_a_specialist_is_compared_with_the_students_distribution_among_its_classes(fetcher: Fetcher) -> None:
    some, of_all = (2, 5, 9), labels(fetcher)
    student = np.random.default_rng(0).normal(0, 3, (500, 10)).astype(np.float32)
    teacher = np.random.default_rng(1).normal(0, 3, (500, 3)).astype(np.float32)
    scores = evaluate(Oracle(student), fetcher, 64, Oracle(teacher), teacher_classes={"logits": some})
    alone = evaluate(Oracle(student), fetcher, 64)
    assert {name: scores[name] for name in alone} == alone
    p = np.exp(teacher - teacher.max(axis=1, keepdims=True)).astype(np.float64)
    p /= p.sum(axis=1, keepdims=True)
    q = np.exp(student[:, some].astype(np.float64))
    q /= q.sum(axis=1, keepdims=True)
    assert scores["kl"] == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-4)
    assert scores["agreement_top1"] == pytest.approx((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    known = np.isin(of_all, some)
    right = np.array(some)[teacher.argmax(axis=1)] == of_all
    assert scores["teacher_accuracy"] == pytest.approx(right[known].mean())
    with pytest.raises(ConfigError, match="class map has class 12, the student 10 classes"):
        evaluate(Oracle(student), fetcher, 64, Oracle(teacher), teacher_classes={"logits": (2, 5, 12)})
