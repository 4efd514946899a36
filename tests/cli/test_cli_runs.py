"""What `distillog runs` prints of a run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from student_trainer.run.folder import RunFolder

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
steps = 12
log_every = 5
[evaluation]
dataset = "digits?split=test"
every = 6
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.toml").write_text(RUN)
    result = CliRunner().invoke(main, ["runs", "start", str(folder / "small.toml"), "--folder", str(folder), "--quiet"])
    assert result.exit_code == 0, result.output
    return folder


def call(runs: Path, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["runs", *arguments, "--folder", str(runs)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_show_has_the_last_loss_and_figures(runs: Path) -> None:
    lines = [json.loads(line) for line in (runs / "small/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 6, 10, 12, 12]
    last, evaluation = lines[-2:]
    shown = json.loads(call(runs, "show", "small", "--json"))
    assert shown["step"] == shown["total_steps"] == 12
    assert shown["loss"] == last["loss"]
    assert shown["losses"] == {"cross_entropy": last["losses"]["cross_entropy"]}
    assert shown["lr"] == 0.001
    assert shown["samples_per_s"] == last["timing"]["samples_per_s"]
    assert shown["steps_per_s"] == pytest.approx(shown["samples_per_s"] / 50)
    assert shown["evaluation"] == {"step": 12, **evaluation["evaluation"]}
    assert shown["settings"]["train"]["batch_size"] == 50

    shown_text = call(runs, "show", "small").split("\n\n")[0]
    table = dict(re.split(r" {2,}", line, maxsplit=1) for line in shown_text.splitlines())
    assert table["state"] == "done"
    assert table["loss"] == f"{last['loss']:.6g}"
    assert table["losses cross_entropy"] == table["loss"]
    assert table["evaluation accuracy"] == f"{evaluation['evaluation']['accuracy']:.6g}"
    assert table["evaluation step"] == "12"


def test_a_run_that_has_logged_nothing_yet_shows_what_there_is(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.mkdir()
    for name in ("run.toml", "run.json"):
        (path / name).write_bytes((runs / "small" / name).read_bytes())
    shown = json.loads(call(tmp_path, "show", "small", "--json"))
    assert (shown["step"], shown["loss"], shown["evaluation"]) == (0, None, None)
    assert "loss" not in call(tmp_path, "show", "small").split("\n\n")[0]
    # And a line that is being written, or did not fit on the disk, is left out.
    (path / "metrics.jsonl").write_text((runs / "small/metrics.jsonl").read_text().splitlines()[0] + '\n{"step": 7')
    assert json.loads(call(tmp_path, "show", "small", "--json"))["step"] == 5


def test_a_run_stands_where_its_newest_checkpoint_does(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "small", tmp_path / "small")
    metrics = tmp_path / "small/metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")  # a run that is stopped has not logged its last step
    assert json.loads(call(tmp_path, "show", "small", "--json"))["step"] == 12
    assert call(tmp_path, "list").splitlines()[1].split()[4] == "12"


def test_list_has_the_accuracy(runs: Path) -> None:
    (found,) = json.loads(call(runs, "list", "--json"))
    header, row = call(runs, "list").splitlines()
    assert header.split() == ["name", "state", "source", "student", "step", "accuracy"]
    assert row.split() == ["small", "done", "digits?split=train", "linear", "12", str(found["accuracy"])]


def test_lines_that_were_damaged_are_passed_over(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "small", tmp_path / "small")
    shown = call(tmp_path, "show", "small", "--json")
    with (tmp_path / "small/metrics.jsonl").open("ab") as file:
        file.write(
            b'\xff{"step": 13}\n5\n{"stfp": 13}\n{"step": 14, "evaluation": 3}\n{"step": "x"}\n' + b"[" * 100_000
        )
    assert call(tmp_path, "show", "small", "--json") == shown


def refuse(runs: Path, *arguments: str, words: tuple[str, ...], code: int = 1) -> None:
    result = CliRunner().invoke(main, ["runs", *arguments, "--folder", str(runs)], input="n\n")
    assert result.exit_code == code, result.output
    assert all(word in result.stderr for word in words), result.stderr


def test_samples_of_another_kind_are_refused_before_anything_is_evaluated(runs: Path) -> None:
    for command in ("evaluate", "export"):
        refuse(
            runs,
            command,
            "small",
            "--dataset",
            "mnist1d?split=test",
            words=("has the fields signal float32[", "the student takes image float32[1, 8, 8]; give data"),
        )


def test_a_run_file_is_no_name_to_resume(runs: Path) -> None:
    words = ("small.toml is a run file", "`distillog runs resume small`")
    refuse(runs, "resume", str(runs / "small.toml"), words=words)


@pytest.mark.parametrize(
    "call",
    ["show", "resume", "delete --yes", "evaluate", "export", "report --no-speed", "compare small", "bench"],
)
@pytest.mark.parametrize("name", ["../runs/small", "small/"])
def test_a_path_is_no_runs_name(runs: Path, call: str, name: str) -> None:
    result = CliRunner().invoke(main, ["runs", *call.split(), name, "--folder", str(runs)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"run name {name!r}: use 1 to 64 letters" in result.stderr
    assert not (runs / "small/student.onnx").exists()
    assert not (runs / "small/report.html").exists()


def test_a_run_is_deleted_with_all_that_is_in_it_when_nobody_objects(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "small", tmp_path / "small")
    refuse(tmp_path, "delete", "small", words=(f"delete run {tmp_path}/small (done)", "Aborted"))
    refuse(tmp_path, "delete", "../small", "--yes", words=("run name '../small'",))
    refuse(tmp_path, "delete", "other", "--yes", words=("there is no run",))
    with RunFolder.open(tmp_path / "small"):
        refuse(tmp_path, "delete", "small", "--yes", words=("trains in this run folder",))
    (tmp_path / "linked").symlink_to(tmp_path / "small")
    refuse(tmp_path, "delete", "linked", "--yes", words=("is a link to", "by hand"))
    (tmp_path / "linked").unlink()
    assert call(tmp_path, "delete", "small", "--yes") == f"deleted run {tmp_path}/small\n"
    assert list(tmp_path.iterdir()) == []


def test_an_exported_student_says_what_its_classes_and_its_input_are_and_nothing_of_its_run(runs: Path) -> None:
    call(runs, "export", "small")
    student = onnx.load(runs / "small/student.onnx")
    said = {each.key: json.loads(each.value) for each in student.metadata_props}
    assert said == {
        "distillog.class_names": list("0123456789"),
        "distillog.inputs": [{"field": "image", "dtype": "float32", "shape": [1, 8, 8], "layout": "nchw"}],
        "distillog.view": {"name": "none", "params": {}},
    }
    content = (runs / "small/student.onnx").read_bytes()
    assert not [word for word in (str(runs).encode(), b"small", b"site-packages", b".py") if word in content]


def test_a_dataset_whose_classes_have_another_order_is_refused(runs: Path, tmp_path: Path) -> None:
    for folder, names in (("one", "0123456789"), ("other", "0132456789"), ("fewer", "012345678")):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "image.npy", np.zeros((9, 1, 8, 8), np.float32))
        np.save(tmp_path / folder / "labels.npy", np.arange(9))
        (tmp_path / folder / "classes.txt").write_text("\n".join(names) + "\n")
    call(runs, "evaluate", "small", "--dataset", f"npy:{tmp_path}/one")
    for folder, words in (("other", "number 2 is '3' there, and '2'"), ("fewer", "number 9 is 'nothing' there")):
        refuse(runs, "evaluate", "small", "--dataset", f"npy:{tmp_path}/{folder}", words=(words, "name its classes"))


def test_a_student_that_ends_at_chance_says_so_in_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(RUN)
    start = ["runs", "start", str(tmp_path / "small.toml"), "--folder", str(tmp_path)]
    good = CliRunner().invoke(main, [*start, "--set", "name=good", "--set", "optimizer.lr=0.1"])
    bad = CliRunner().invoke(main, [*start, "--set", "name=bad", "--set", "optimizer.lr=1e-9"])
    assert good.exit_code == bad.exit_code == 0
    said = "no better than always naming the commonest class, which is right for 10."
    assert said in bad.stdout.splitlines()[-1]
    assert said not in good.stdout
    evaluated = CliRunner().invoke(main, ["runs", "evaluate", "bad", "--folder", str(tmp_path)])
    assert evaluated.stderr.startswith(f"warning: run bad is {said}")


def test_a_run_says_how_large_its_student_is_when_it_starts(runs: Path, tmp_path: Path) -> None:
    start = ["runs", "start", str(runs / "small.toml"), "--folder", str(tmp_path)]
    said = CliRunner().invoke(main, start).stderr.splitlines()[0]
    assert said == f"{tmp_path}/small: linear of 650 parameters, step 0 of 12, on cpu"
    said = CliRunner().invoke(main, ["runs", "resume", "small", "--folder", str(tmp_path)]).stderr.splitlines()[0]
    assert said == f"{tmp_path}/small: linear of 650 parameters, step 12 of 12, on cpu"


def test_a_run_goes_on_from_the_weights_that_another_one_exported(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call(runs, "export", "small", "--onnx", "small.onnx", "--safetensors", "small.safetensors")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["small.onnx", "small.safetensors"]
    refuse(runs, "export", "small", "--projections", words=("none of its [[losses]] has a projection",))
    refuse(runs, "export", "small", "--output", "logts", words=("gives no 'logts': did you mean 'logits'?",))

    (tmp_path / "on.toml").write_text(RUN.replace('"small"', '"on"'))
    weights = ("--set", "student.weights=small.safetensors")
    assert "finished at step 12" in call(runs, "start", "on.toml", *weights, "--quiet")
    shown = json.loads(call(runs, "show", "on", "--json"))
    sha256 = hashlib.sha256((tmp_path / "small.safetensors").read_bytes()).hexdigest()
    assert shown["settings"]["student"]["weights"]["sha256"] == sha256
    assert shown["began_with"] == f"{tmp_path}/small.safetensors ({sha256[:16]})"
    assert shown["evaluation"]["nll"] < json.loads(call(runs, "show", "small", "--json"))["evaluation"]["nll"]
    shutil.rmtree(runs / "on")  # which the tests above know nothing of
    refuse(runs, "start", "on.toml", "--set", "student.weights=nowhere", words=("nowhere: cannot be read",))
