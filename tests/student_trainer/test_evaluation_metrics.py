"""Runs that say what their evaluation measures: before the first step, while they train, and afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from support.metrics import Spread
from support.models import classifier
from support.more_outputs import with_outputs
from support.students import Heads
from train_runs import digits_run, run

from pipeline.cli import main
from pipeline.datasets import open_dataset
from pipeline.onnx_runtime import open_session
from pipeline.views import view_spec
from pipeline.views.fetch import Fetched, Fetcher
from schemas.codecs import CodecSpec, Features
from schemas.errors import ConfigError, NotFinite
from student_trainer.evaluate import evaluate, predictor
from student_trainer.learning.student_outputs import StudentOutputs
from student_trainer.learning.targets import TargetSpec
from student_trainer.run.edits import resumed_settings
from student_trainer.run.folder import read_settings
from student_trainer.run.loss_settings import LossSettings
from student_trainer.run.metric_settings import MetricSettings, parse_metric
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.scores.by_default import metrics_by_default
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.dataset import DatasetSource
from student_trainer.trained import load_student

OF_TEST = "digits?split=test"
STUDENT = {"name": "support.students:encoder", "width": 8, "hidden": None, "outputs": {"inner": "inner"}}
SCORES = {"name": "support.students:scorer"}
METRICS: list[dict[str, Any]] = [
    {"name": "classes"},
    {"name": "position_nll", "key": "places", "on": "tokens", "labels": "places"},
    {"name": "support.metrics:Spread", "of": "inner"},
    {"name": "features", "on": "tokens"},
]


def metric_run(*metrics: dict[str, Any], student: dict[str, Any] | None = None, **evaluation: Any) -> RunSettings:
    document = digits_run(evaluation={"dataset": OF_TEST, "view": "support.user_data:placed", **evaluation}).as_dict()
    document["evaluation"]["metrics"] = list(metrics)
    document["student"] = student or {key: value for key, value in STUDENT.items() if value is not None}
    return run_settings(document)


def distillog(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["runs", *map(str, arguments)])


def succeed(*arguments: object) -> Any:
    done = distillog(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def seen() -> Fetched:
    fetcher = Fetcher(open_dataset(OF_TEST), view_spec("support.user_data:placed", {}))
    return fetcher.fetch(np.arange(500), 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "r"
    run(folder, metric_run(*METRICS, every=6))
    return folder


def test_a_run_writes_the_figures_of_its_metrics_wherever_it_writes_figures(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    found = [line["evaluation"] for line in lines if "evaluation" in line]
    assert len(found) == 2
    last = found[-1]
    assert list(last) == [
        *("num_samples", "num_labelled", "accuracy", "nll", "ece", "num_commonest"),
        *("places.num_positions", "places.position_nll", "places.perplexity", "places.position_accuracy"),
        *("spread", "labelled"),
    ]
    again = succeed("evaluate", "r", "--folder", trained.parent, "--metric", "places", "--metric", "classes")
    assert again == {key: value for key, value in (last | {"step": 12}).items() if key not in ("spread", "labelled")}
    everything = distillog("evaluate", "r", "--folder", trained.parent, "--json")
    assert json.loads(everything.stdout) == {"step": 12, **last}
    shown = succeed("show", "r", "--folder", trained.parent)
    assert shown["evaluation"] == {"step": 12, **last}
    table = distillog("show", "r", "--folder", trained.parent).stdout
    assert re.search(rf"^evaluation places.position_nll +{last['places.position_nll']:.6g}$", table, re.M)


def test_the_figures_are_those_of_the_checkpoints_student(trained: Path) -> None:
    scores = succeed("evaluate", "r", "--folder", trained.parent, "--metric", "places")
    fetched, model = seen(), load_student(trained).model
    with torch.no_grad():
        tokens = model(torch.tensor(fetched.inputs["image"]))["tokens"].double()
    labels = torch.tensor(fetched.inputs["places"])
    nll = torch.nn.functional.cross_entropy(tokens.flatten(0, 1), labels.flatten(), ignore_index=-1)
    assert 0 < scores["places.num_positions"] == int((labels >= 0).sum()) < labels.numel()
    assert scores["places.position_nll"] == pytest.approx(nll.item(), rel=1e-9)
    hits = (tokens.argmax(2) == labels)[labels >= 0].double().mean().item()
    assert scores["places.position_accuracy"] == pytest.approx(hits)


def test_a_run_measured_at_positions_has_no_accuracy_of_samples(tmp_path: Path) -> None:
    run(tmp_path / "r", metric_run({"name": "position_nll", "on": "tokens", "labels": "places"}))
    [listed] = succeed("list", "--folder", tmp_path)
    assert listed["accuracy"] is None
    assert 0 <= listed["evaluation"]["position_accuracy"] <= 1


def test_a_run_says_which_metrics_wait_for_a_teacher(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run(tmp_path / "r", metric_run(METRICS[0], METRICS[3]))
    assert "[[evaluation.metrics]] features: measured beside a teacher alone, `distillog runs evaluate" in caplog.text
    assert "accuracy" in result.metrics
    result = run(tmp_path / "only", metric_run(METRICS[3]))
    assert result.metrics == {}
    refused = distillog("evaluate", "only", "--folder", tmp_path)
    assert "all metrics of the run compare with a teacher: name its file with --teacher" in refused.stderr
    caplog.clear()
    run(tmp_path / "later", metric_run(METRICS[3], dataset=""))
    assert caplog.text == ""
    with pytest.raises(ConfigError, match="did you mean 'features'"):
        run(tmp_path / "wrong", metric_run({"name": "feature"}, dataset=""))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such metric": ({"name": "positions_nll"}, "did you mean 'position_nll'"),
    "no such field": (
        {"name": "position_nll", "on": "tokens", "labels": "place"},
        "no field 'place': did you mean 'pla",
    ),
    "no such output": ({"name": "position_nll", "on": "token", "labels": "places"}, "gives no 'token': did you mean"),
    "no positions": (
        {"name": "position_nll", "labels": "places"},
        r"gives rows of \[N, 10\], field 'places' has labels",
    ),
    "no scores": ({"name": "spearman", "labels": "bright"}, r"the student gives float32 of \[N, 10\]: scores are one"),
    "a faulty one": ({"name": "support.metrics:Faulty", "how": "update"}, r"update\(\) raised KeyError"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_metric_that_does_not_fit_is_refused_before_the_first_step(tmp_path: Path, what: str) -> None:
    metric, says = WRONG[what]
    with pytest.raises(ConfigError, match=says):
        run(tmp_path / "r", metric_run(metric))
    assert not (tmp_path / "r").exists()


LATE: dict[str, tuple[list[dict[str, Any]], str]] = {
    "raises": ([{"name": "support.metrics:Faulty", "how": "compute"}], r"compute\(\) raised ZeroDivisionError"),
    "no number": ([{"name": "support.metrics:Faulty", "how": "nan"}], r"compute\(\) gave 'nan' for 'area'"),
    "ours, later": ([{"name": "support.metrics:Faulty", "how": "other's"}, METRICS[0]], "'accuracy', which is taken"),
    "two of one's own": (
        [{"name": "support.metrics:Spread", "of": "inner"}, {"name": f"{__name__}:OfTokens"}],
        f"metric {__name__}:OfTokens gives 'spread', which is taken: give it a `key`",
    ),
}


class OfTokens(Spread):
    """Gives figures of the same names as another."""

    def __init__(self) -> None:
        super().__init__("tokens")


@pytest.mark.parametrize("what", LATE)
def test_what_a_metric_computes_is_looked_at_before_the_first_step(tmp_path: Path, what: str) -> None:
    metrics, says = LATE[what]
    with pytest.raises(ConfigError, match=says):
        run(tmp_path / "r", metric_run(*metrics))
    assert not (tmp_path / "r").exists()


class Endless(torch.nn.Linear):
    """Gives NaN, whatever it is given."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(prod(input_shape), num_classes)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return super().forward(samples.flatten(1)) * torch.nan


def test_a_metric_is_tried_though_one_before_it_comes_by_nan(tmp_path: Path) -> None:
    faulty, fine = ({"name": "support.metrics:Faulty", "how": how} for how in ("update", "nan"))
    student = {"name": f"{__name__}:Endless"}
    with pytest.raises(ConfigError, match=r"update\(\) raised KeyError"):
        run(tmp_path / "r", metric_run(METRICS[0], faulty, student=student))
    with pytest.raises(NotFinite, match="step 1"):  # and what comes of NaN is no fault of a metric's
        run(tmp_path / "r", metric_run(METRICS[0], fine, student=student))


def test_two_metrics_of_one_name_need_a_key() -> None:
    with pytest.raises(ConfigError, match=r"\[\[evaluation.metrics\]\] two are called 'classes': give one a `key`"):
        metric_run({"name": "classes"}, {"name": "classes", "on": "other"})
    with pytest.raises(ConfigError, match="metric name 'a b'"):
        metric_run({"name": "classes", "key": "a b"})


def test_a_student_of_several_outputs_and_no_logits_says_what_it_is_measured_by(tmp_path: Path) -> None:
    student = {"name": "support.students:two_heads"}
    losses = {"losses": [{"name": "cross_entropy", "on": "second"}]}
    settings = metric_run(student=student)
    with pytest.raises(ConfigError, match=r"say what to measure with \[\[evaluation.metrics\]\]"):
        run(tmp_path / "none", run_settings(settings.as_dict() | losses))
    assert not (tmp_path / "none").exists()
    settings = metric_run({"name": "classes", "on": "second"}, student=student)
    result = run(tmp_path / "second", run_settings(settings.as_dict() | losses))
    assert 0 <= result.metrics["accuracy"] <= 1


def lone(input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    """One output, which is not called `logits`."""
    return Heads(prod(input_shape), {"scores": (num_classes,)})


def test_an_evaluation_takes_what_the_student_itself_gives_beside_inner_values(tmp_path: Path) -> None:
    student = {"name": f"{__name__}:lone", "outputs": {"inner": "layers.scores"}}
    losses = {"losses": [{"name": "cross_entropy", "on": "scores"}]}
    result = run(tmp_path / "r", run_settings(metric_run(student=student).as_dict() | losses))
    assert 0 <= succeed("evaluate", "r", "--folder", tmp_path)["accuracy"] == result.metrics["accuracy"]


class Near(DatasetSource):
    """A teacher of features [N, 10], or of as many tags, which are all 0."""

    has_labels = True

    def __init__(self, settings: RunSettings, kind: str) -> None:
        super().__init__(replace(settings, losses=(LossSettings("cross_entropy"),)))
        self.targets = {"t.of": TargetSpec(kind, (10,), 0, CodecSpec("float32"), default=True)}

    def orders(self, cursor: Cursor) -> Iterator[LabelledOrder]:
        for order in super().orders(cursor):
            yield replace(order, targets={"t.of": Features(np.zeros((len(order.sample_ids), 10), np.float32))})


@pytest.mark.parametrize(("loss", "kind"), [("mse", "features"), ("cosine", "values"), ("binary_kl", "multilabel")])
def test_a_student_that_learns_no_classes_says_what_it_is_measured_by(tmp_path: Path, loss: str, kind: str) -> None:
    def taught(*metrics: dict[str, Any], **evaluation: Any) -> RunSettings:
        settings = metric_run(*metrics, student={"name": "linear"}, **evaluation)
        stream = {"source": "stream", "data": {"stream": "s"}, "teachers": [{"name": "t"}]}
        document = settings.as_dict() | {"losses": [{"name": loss, "against": "t.of"}]}
        return run_settings(document | stream | {"data": document["data"] | stream["data"]})

    settings = taught()
    with pytest.raises(ConfigError, match=r"output 'logits', .* say what to measure with \[\[evaluation.metrics\]\]"):
        run(tmp_path / "refused", settings, Near(settings, kind))
    assert not (tmp_path / "refused").exists()
    settings = taught({"name": "support.metrics:Spread", "of": "logits"})
    assert "spread" in run(tmp_path / "named", settings, Near(settings, kind)).metrics
    settings = taught(dataset="")
    run(tmp_path / "later", settings, Near(settings, kind))
    evaluate_later = ("evaluate", "later", "--folder", tmp_path, "--dataset", OF_TEST)
    refused = distillog(*evaluate_later)
    assert refused.exit_code == 1
    assert re.search(r"^error: no loss has the student .* say what to measure with --metric$", refused.stderr, re.M)
    assert "accuracy" in succeed(*evaluate_later, "--metric", "classes")


@pytest.mark.parametrize("shape", [(2,), (2, 4, 10)])
def test_a_student_of_no_row_of_classes_is_told_to_say_what_is_measured(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"one row of classes as its output 'logits', .* say what .* with --metric"):
        metrics_by_default(digits_run(), {"logits": np.zeros(shape)}, "--metric")
    assert metrics_by_default(digits_run(), {"logits": np.zeros((2, 10))}, "--metric") == (MetricSettings("classes"),)


class Shrinking(torch.nn.Linear):
    """Gives the first four of its numbers alone, where it does not learn."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(prod(input_shape), num_classes)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        logits = super().forward(samples.flatten(1))
        return logits if self.training else logits[:, :4]


def test_what_is_measured_by_default_is_tried_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metric classes: dataset .* has 10 classes, the student 4"):
        run(tmp_path / "r", metric_run(student={"name": f"{__name__}:Shrinking"}))
    assert not (tmp_path / "r").exists()


def test_a_resume_takes_other_metrics_whole(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(metric_run(*METRICS[:3]).as_toml())
    started = distillog("start", file, "--folder", tmp_path, "--quiet")
    assert started.exit_code == 0, started.output
    assert re.search(r"  places\.position_accuracy \d\.\d{4}  spread \d\.\d{4}  labelled 500$", started.stdout, re.M)
    assert "num_positions" not in started.stdout
    file.write_text(metric_run({"name": "classes"}, {"name": "spearman", "on": "first", "labels": "bright"}).as_toml())
    metrics = resumed_settings(tmp_path / "r").evaluation.metrics
    assert [each.title for each in metrics] == ["classes", "spearman"]
    file.write_text(metric_run().as_toml())
    assert resumed_settings(tmp_path / "r").evaluation.metrics == ()
    assert read_settings(tmp_path / "r").evaluation.metrics == metric_run(*METRICS[:3]).evaluation.metrics


# --- a teacher's file -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of outputs `y` [N, 10], `tokens` [N, 4, 8], `large` [N, 1], which rises with a digit's brightness."""
    path = tmp_path_factory.mktemp("teacher") / "t.onnx"
    return with_outputs(classifier(path, input_name="image"), "tokens", "large")


TOLD = ("--output", "logits=y", "--output", "tokens=tokens:features")


def test_a_student_is_held_against_a_teachers_file_by_the_runs_metrics_and_by_others(
    trained: Path, teacher: Path
) -> None:
    compare = ("evaluate", "r", "--folder", trained.parent, "--teacher", teacher, *TOLD)
    scores = succeed(*compare)
    assert {"accuracy", "places.position_nll", "spread", "num_cosines", "cosine", "mse"} < set(scores)
    inputs = seen().inputs
    of_teacher = predictor(teacher)(inputs)
    with torch.no_grad():
        given = load_student(trained).model(torch.tensor(inputs["image"]))
    a, b = given["tokens"].double(), torch.tensor(of_teacher["tokens"]).double()
    there = (a.norm(dim=2) > 0) & (b.norm(dim=2) > 0)
    cosine = torch.nn.functional.cosine_similarity(a[there], b[there], dim=1)
    assert scores["num_cosines"] == int(there.sum())
    assert scores["cosine"] == pytest.approx(cosine.mean().item(), rel=1e-6)
    assert scores["mse"] == pytest.approx((a - b).square().mean().item(), rel=1e-6)
    named = succeed(*compare, "--metric", "features?on=tokens&key=f", "--metric", "agreement")
    assert (named["f.cosine"], named["f.mse"]) == (scores["cosine"], scores["mse"])
    agreed = (given["logits"].argmax(1).numpy() == of_teacher["y"].argmax(1)).mean()
    assert named["agreement_top1"] == pytest.approx(agreed)
    assert "accuracy" not in named


def test_a_student_is_held_against_reduced_features_and_tags_of_a_teachers_file(trained: Path, teacher: Path) -> None:
    told = ("--output", "tags=y:multilabel", "--output", "pooled=tokens:features", "--reduce", "pooled=mean@1")
    metrics = ("--metric", "features?on=tokens&against=pooled&reduce=mean@1", "--metric", "tags?on=logits&against=tags")
    scores = succeed("evaluate", "r", "--folder", trained.parent, "--teacher", teacher, *told, *metrics)
    of_teacher = predictor(teacher)(seen().inputs)
    with torch.no_grad():
        given = load_student(trained).model(torch.tensor(seen().inputs["image"]))
    pooled = given["tokens"].double().mean(dim=1) - torch.tensor(of_teacher["tokens"]).double().mean(dim=1)
    assert scores["mse"] == pytest.approx(pooled.square().mean().item(), rel=1e-5)
    student, tags = given["logits"].double().sigmoid(), torch.tensor(of_teacher["y"]).double().sigmoid()
    assert scores["num_tag_rows"] == 500
    assert scores["tag_difference"] == pytest.approx((student - tags).abs().mean().item(), rel=1e-5)


def test_a_teacher_beside_metrics_that_do_not_compare_adds_agreement(tmp_path: Path, teacher: Path) -> None:
    run(tmp_path / "r", metric_run({"name": "spearman", "on": "score", "labels": "bright"}, student=SCORES))
    compare = ("evaluate", "r", "--folder", tmp_path, "--teacher", teacher)
    named = ("--output", "hidden=tokens:features", "--output", "scores=y")
    assert set(succeed(*compare, *named)) == {
        *("step", "num_samples", "num_scores", "spearman", "pearson"),
        *("agreement_top1", "agreement_top5", "kl", "teacher_accuracy"),
    }
    values = ("--output", "large=large:values", "--metric", "spearman", "--metric")
    found = succeed(*compare, *values, "spearman?key=taught&on=score&against=large")
    assert found["taught.num_scores"] == 500
    assert found["taught.spearman"] == pytest.approx(found["spearman"], abs=1e-4)  # the same order, but for ties
    assert found["taught.pearson"] == pytest.approx(found["pearson"], abs=1e-5)
    refused = distillog(*compare, "--output", "hidden=tokens:features")
    assert "no output gives a sample one row of classes" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


REFUSED: dict[str, tuple[tuple[str, ...], bool, str]] = {
    "a teacher for nothing": (("--metric", "classes"), True, "--teacher: none of these metrics compares with it; add"),
    "no teacher": (("--metric", "agreement"), False, "--metric agreement compares with a teacher: name its file"),
    "not the teacher's": (("--metric", "features?on=tokens&against=token"), True, "the teacher gives no 'token': did"),
    "no one of several": (("--metric", "features?on=inner"), True, r"\[N, 32\], the teacher of \[N, 10\]"),
    "twice": (("--metric", "classes?on=logits&on=tokens"), False, "says something twice"),
    "no parameters": (("--metric", "classes?on"), False, "after the . write key=value"),
    "no number for a text": (("--metric", "classes?on=3"), False, "metric classes: on must be a text, is 3"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_evaluation_of_what_is_not_there_is_refused_in_one_line(trained: Path, teacher: Path, what: str) -> None:
    arguments, compares, says = REFUSED[what]
    options = ("--teacher", teacher, *TOLD) if compares else ()
    refused = distillog("evaluate", "r", "--folder", trained.parent, *arguments, *options)
    assert refused.exit_code == 1
    assert len(refused.stderr.splitlines()) == 1
    assert re.search(says, refused.stderr), refused.stderr


def test_a_metric_of_the_command_line_is_written_as_a_datasets_uri_is() -> None:
    assert parse_metric("classes") == MetricSettings("classes")
    own = parse_metric("my_package.metrics:Area?key=area&bins=20&of=logits&sharp=true&power=0.5")
    assert own == MetricSettings(
        "my_package.metrics:Area", "area", {"bins": 20, "of": "logits", "sharp": True, "power": 0.5}
    )


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_file_gives_all_of_its_outputs_and_a_lone_one_is_the_logits(teacher: Path, tmp_path: Path) -> None:
    inputs = {"image": seen().inputs["image"][:7]}
    session = open_session(teacher)
    names = [one.name for one in session.get_outputs()]
    expected = dict(zip(names, session.run(names, inputs), strict=True))
    found = predictor(teacher)(inputs)
    assert list(found) == names == ["y", "tokens", "large"]
    assert all(np.array_equal(found[name], expected[name]) for name in names)
    lone = predictor(classifier(tmp_path / "lone.onnx", input_name="image"))(inputs)
    assert list(lone) == ["logits"]
    with pytest.raises(ConfigError, match=r"t\.onnx takes 'image', which is no field: did you mean 'images'"):
        predictor(teacher)({"images": inputs["image"]})


class Halves(torch.nn.Module):
    """Gives bfloat16, and whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(64, 10)

    def forward(self, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.inner(samples.flatten(1)).bfloat16()
        return {"logits": logits, "likeliest": logits.argmax(dim=1)}


def test_a_module_gives_its_outputs_and_inner_values_as_arrays() -> None:
    inputs, model = seen().inputs, Halves().eval()
    found = predictor(StudentOutputs(model, {"hidden": "inner"}), ("image",))(inputs)
    assert {name: str(values.dtype) for name, values in found.items()} == {
        "logits": "float32", "likeliest": "int64", "hidden": "float32",
    }  # fmt: skip
    assert np.array_equal(found["logits"].argmax(axis=1), found["likeliest"])
    assert found["hidden"].shape == (500, 10)


class Failing(torch.nn.Module):
    """Fails on more than one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes\ndo not match")


def test_a_student_that_fails_is_one_line() -> None:
    data = Fetcher(open_dataset(OF_TEST), view_spec("none", {}))
    with pytest.raises(
        ConfigError, match="the student fails on samples to evaluate it on: RuntimeError: shapes do not"
    ):
        evaluate(Failing(), data, 64)
