"""What `distillog runs bench` prints of a run's student and of files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from support.models import classifier

from pipeline.cli import main

RUN = """
name = "small"
source = "dataset"
losses = [{name = "cross_entropy"}]
[data]
dataset = "digits?split=train"
[student]
name = "linear"
[train]
batch_size = 50
steps = 2
"""
FAST = ("--rounds", "1", "--seconds", "0.01", "--batch-size", "70")


def bench(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["runs", "bench", *arguments, "--folder", str(folder)])


@pytest.mark.faults
@pytest.mark.short
def test_a_run_that_was_not_exported_is_and_stands_beside_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(RUN)
    made = ["runs", "start", str(tmp_path / "small.toml"), "--folder", str(tmp_path), "--quiet"]
    assert CliRunner().invoke(main, made).exit_code == 0
    teacher = classifier(tmp_path / "teacher.onnx", convolution=True)
    told = bench(tmp_path, str(teacher), "small", *FAST, "--price-per-hour", "3.6", "--json")
    assert told.exit_code == 0, told.output
    assert f"{tmp_path}/small/student.onnx is not there yet: exporting the newest checkpoint" in told.stderr
    found = json.loads(told.stdout)
    assert [each["inputs"] for each in found["models"]] == ["random values of a fixed seed", "its own data"]
    assert found["models"][1]["file_bytes"] == (tmp_path / "small/student.onnx").stat().st_size
    first, second = found["results"]
    assert (first["model"], second["model"]) == (str(teacher), "small")
    assert second["ratios"]["to"] == str(teacher)
    for each in (first, second):
        assert (each["batch_size"], each["threads"], each["providers"]) == (70, 1, ["CPUExecutionProvider"])
        assert each["cost_of_a_million"] == pytest.approx(1000 / each["samples_per_s"]["median"])

    written = (tmp_path / "small/student.onnx").stat().st_mtime_ns
    told = bench(tmp_path, "small", *FAST, "--quiet")
    assert told.exit_code == 0, told.output
    head, row, *_ = told.stdout.splitlines()
    columns = "model provider threads batch p50 ms p95 ms p99 ms samples/s least most peak MiB file MiB"
    assert " ".join(head.split()) == columns
    assert row.split()[:4] == ["small", "cpu", "1", "70"]
    assert "timed: session.run alone" in told.stdout
    assert (tmp_path / "small/student.onnx").stat().st_mtime_ns == written


def test_speeds_are_drawn_by_batch_size(tmp_path: Path) -> None:
    one, other = classifier(tmp_path / "a&b.onnx"), classifier(tmp_path / "c.onnx")
    file = tmp_path / "speed.svg"
    sizes = ("--batch-size", "8", "--batch-size", "1", "--rounds", "1", "--seconds", "0.001", "--quiet")
    told = bench(tmp_path, str(one), str(other), *sizes, "--svg", str(file), "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["svg"] == str(file)
    root = ElementTree.parse(file).getroot()
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {str(one), str(other), "p50 of a call, ms", "samples/s", "1", "8", "batch size"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3 * 2 * 2


REFUSED = {
    "there is no such file": (["other.onnx"], 1, "other.onnx: no such file"),
    "there is no such run": (["other"], 1, "there is no run"),
    "nothing to measure": ([], 2, "Missing argument 'MODELS"),
    "one model twice": (["a.onnx", "a.onnx"], 2, "a model is given twice"),
    "no price": (["a.onnx", "--price-per-hour", "nan"], 2, "--price-per-hour nan: no price"),
    "no such dimension": (["{model}", "--size", "tokens=3"], 1, "--size tokens: no MODEL.onnx here"),
    "no such provider": (["{model}", "--provider", "cpu", "--provider", "cuba"], 1, "did you mean 'cuda'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    arguments, code, says = REFUSED[what]
    model = classifier(tmp_path / "m.onnx")
    told = bench(tmp_path, *(each.format(model=model) for each in arguments))
    assert told.exit_code == code, told.output
    assert says in told.stderr.splitlines()[-1]
    assert told.stdout == ""
