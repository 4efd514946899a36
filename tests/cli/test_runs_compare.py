"""`distillog runs compare`: what it says of runs is what each of them says of itself, and of two that are the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.datasets import open_dataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from student_trainer.curves import picture
from student_trainer.evaluate import predictor
from student_trainer.run.differences import different_settings
from student_trainer.run.settings import run_settings
from student_trainer.trained import load_student

RUN = """
name = "{name}"
source = "dataset"
[[losses]]
name = "cross_entropy"
[data]
dataset = "digits?split=train"
[student]
name = "{student}"
[train]
batch_size = 50
steps = {steps}
log_every = 5
[evaluation]
dataset = "digits?split=test"
every = 6
"""
PEER = """
[[losses]]
name = "forward_kl"
against = "peers.logits"
[[peers]]
name = "wide"
student = {name = "mlp", hidden = [24]}
"""
RUNS = {"a": ("linear", 12), "b": ("mlp", 12), "c": ("linear", 18)}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["runs", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, (student, steps) in RUNS.items():
        (folder / f"{name}.toml").write_text(RUN.format(name=name, student=student, steps=steps))
        result = call("start", folder / f"{name}.toml", "--folder", folder, "--quiet")
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    result = call("compare", *RUNS, "--folder", folder, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_scores_are_those_of_each_runs_own_evaluation(folder: Path, found: dict[str, Any]) -> None:
    for name, scores, step in zip(RUNS, found["students"]["scores"], found["students"]["steps"], strict=True):
        own = json.loads(call("evaluate", name, "--folder", folder, "--json").stdout)
        assert {"step": step, **scores} == own


def test_settings_that_differ_are_shown_and_no_others(found: dict[str, Any]) -> None:
    assert found["settings"]["train.steps"] == [12, 12, 18]
    assert found["settings"]["student.name"] == ["linear", "mlp", "linear"]
    assert all(key.startswith(("student.", "train.steps")) for key in found["settings"])
    assert [each["name"] for each in found["runs"]] == list(RUNS)


def test_agreement_and_classes_are_counted_sample_by_sample(folder: Path, found: dict[str, Any]) -> None:
    source = Fetcher(open_dataset("digits?split=test"), view_spec("none", {}))
    fetched = source.fetch(np.arange(source.dataset.num_samples), 0)
    named = []
    for name in RUNS:
        trained = load_student(folder / name)
        named.append(predictor(trained.outputs, trained.network.fields)(fetched.inputs)["logits"].argmax(axis=1))
    students = found["students"]
    assert students["agreement"] == [[float((a == b).mean()) for b in named] for a in named]
    assert [each["class"] for each in students["classes"]] == list(range(10))
    for each in students["classes"]:
        of_class = fetched.labels == each["class"]
        assert each["samples"] == of_class.sum()
        assert each["recall"] == [float((one[of_class] == each["class"]).mean()) for one in named]


@pytest.fixture(scope="module")
def pair(folder: Path) -> Path:
    document = RUN.format(name="pair", student="linear", steps=12) + PEER
    (folder / "pair.toml").write_text(document)
    result = call("start", folder / "pair.toml", "--folder", folder, "--quiet")
    assert result.exit_code == 0, result.output
    return folder


def test_every_peer_stands_in_a_column_of_its_own(pair: Path) -> None:
    students = json.loads(call("compare", "pair", "b", "--folder", pair, "--json").stdout)["students"]
    assert students["names"] == ["pair", "pair/wide", "b"]
    for number, options in enumerate((["pair"], ["pair", "--peer", "wide"], ["b"])):
        own = json.loads(call("evaluate", *options, "--folder", pair, "--json").stdout)
        assert students["scores"][number]["accuracy"] == pytest.approx(own["accuracy"], abs=1e-9)
    assert len({each["accuracy"] for each in students["scores"]}) == 3
    text = call("compare", "b", "pair", "--folder", pair).stdout
    assert [line.split() for line in text.splitlines() if line.startswith(("SCORE", "AGREEMENT", "CLASS"))] == [
        ["SCORE", "b", "pair", "pair/wide"],
        ["AGREEMENT", "b", "pair", "pair/wide"],
        ["CLASS", "SAMPLES", "b", "pair", "pair/wide"],
    ]


def test_a_report_is_of_the_peer_that_is_asked_for(pair: Path) -> None:
    weights = json.loads((pair / "pair/report.json").read_text())["peers"]["wide"]["weights_sha256"]
    assert call("report", "pair", "--peer", "wide", "--no-speed", "--folder", pair).exit_code == 0
    page = (pair / "pair/report-wide.html").read_text()
    assert "<h1>pair, wide</h1>" in page
    assert weights in page
    assert "<td>mlp (hidden = [24]), 1,810 parameters</td>" in page
    assert "<tr><th scope=row>learned with</th><td>student: linear</td></tr>" in page
    assert "[[peers]]" in page
    own = json.loads(call("evaluate", "pair", "--peer", "wide", "--folder", pair, "--json").stdout)
    assert f"<th scope=row>accuracy</th><td class=n>{own['accuracy']:.4g}</td>" in page
    assert call("report", "pair", "--folder", pair, "--no-speed").exit_code == 0
    first = (pair / "pair/report.html").read_text()
    assert "<td>linear, 650 parameters</td>" in first
    assert "<tr><th scope=row>learned with</th><td>wide: mlp (hidden = [24])</td></tr>" in first
    assert weights not in first
    refused = call("report", "pair", "--peer", "wyde", "--no-speed", "--folder", pair)
    assert "there is no peer 'wyde': did you mean 'wide'?" in refused.stderr


def test_the_text_has_a_table_of_each_kind(folder: Path) -> None:
    text = call("compare", "a", "b", "--folder", folder).stdout
    heads = re.findall(r"^([A-Z]{4,}) .* +b$", text, re.M)
    assert heads == ["SETTING", "LAST", "SCORE", "AGREEMENT", "CLASS"]
    assert re.search(r"^student\.name +linear +mlp$", text, re.M)


def test_curves_are_drawn_of_what_the_runs_wrote(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "curves.svg"
    result = call("compare", *RUNS, "--folder", folder, "--svg", file, "--no-evaluation")
    assert result.exit_code == 0, result.output
    assert "AGREEMENT" not in result.stdout
    root = ElementTree.parse(file).getroot()
    texts = {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"a", "b", "c", "loss", "accuracy", "nll", "ece"} <= texts
    lines = [each.attrib["d"] for each in root.iter("{http://www.w3.org/2000/svg}path") if "stroke" in each.attrib]
    assert len(lines) == 3 + 3 * 4
    assert not any("nan" in each or "inf" in each for each in lines)


def test_what_cannot_be_compared_is_one_line(folder: Path) -> None:
    assert call("compare", "a", "--folder", folder).exit_code == 2
    twice = call("compare", "a", "a", "--folder", folder)
    assert "error: run 'a' is named twice; name each once" in twice.stderr
    assert "there is no run" in call("compare", "a", "z", "--folder", folder).stderr
    own = call("compare", "a", "b", "--folder", folder, "--svg", folder / "a/run.toml")
    assert "is the run's own" in own.stderr


def test_runs_that_are_evaluated_on_other_data_need_a_dataset(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text(RUN.format(name="d", student="linear", steps=2).replace("split=test", "split=train"))
    assert call("start", path, "--folder", folder, "--quiet").exit_code == 0
    refused = call("compare", "a", "d", "--folder", folder)
    assert "not evaluated on one dataset (a on digits?split=test, d on digits?split=train)" in refused.stderr
    assert call("compare", "a", "d", "--folder", folder, "--dataset", "digits?split=test").exit_code == 0


def test_a_loss_more_moves_no_other_in_the_settings_that_differ() -> None:
    first = run_settings(
        {
            "name": "a",
            "source": "dataset",
            "data": {"dataset": "digits"},
            "student": {"name": "linear"},
            "losses": [{"name": "cross_entropy"}],
            "train": {"batch_size": 5, "steps": 3},
        }
    ).as_dict()
    second = {**first, "name": "b", "losses": [{"name": "mse", "against": "x", "weight": 2.0}, *first["losses"]]}
    found = different_settings([run_settings(first), run_settings(second)])
    assert found["losses.mse.weight"] == [None, 2.0]
    assert not any(key.startswith("losses.cross_entropy") for key in found)


@pytest.mark.parametrize("value", [0.0, 1e-9, -3.5, 1e12])
def test_a_curve_of_one_value_is_a_picture_too(value: float) -> None:
    text = picture(["a & b"], [{"loss": [(1, value), (2, value)], "accuracy": [(2, value)]}])
    root = ElementTree.fromstring(text)
    assert "a & b" in {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "nan" not in text
