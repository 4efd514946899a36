"""Where an export may be written: not over what is no file, nor over a run's own files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from train_runs import digits_run, run

from pipeline.cli import main
from pipeline.whole_files import write_whole
from schemas.errors import CannotWrite
from student_trainer.launch import export_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("a", "b")):
        run(folder / name, digits_run(student={"name": "mlp", "hidden": [8]}, train={"seed": seed}))
    return folder


def export(runs: Path, *options: object) -> Result:
    return CliRunner().invoke(main, ["runs", "export", "a", "--folder", str(runs), *map(str, options)])


def held(folder: Path) -> dict[str, bytes | int]:
    """All that lies in a folder: of files their bytes, of anything else its kind."""
    return {
        str(each.relative_to(folder)): each.read_bytes() if each.is_file() else each.lstat().st_mode
        for each in folder.rglob("*")
    }


def refused(runs: Path, *options: object, says: str, folder: Path | None = None) -> None:
    folder = folder or runs
    before = held(folder)
    result = export(runs, *options)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert says in line
    assert held(folder) == before


@pytest.mark.parametrize("option", ["--onnx", "--safetensors"])
def test_what_is_no_file_stays_what_it_is(runs: Path, tmp_path: Path, option: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(tmp_path / "socket"))
        other = next(each for each in ("--onnx", "--safetensors") if each != option)
        for name in ("pipe", "link", "socket"):
            asked = (option, tmp_path / name, other, tmp_path / "other")
            refused(runs, *asked, says=f"{tmp_path / name}: is no regular file", folder=tmp_path)


def test_a_file_that_is_written_whole_takes_the_place_of_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CannotWrite, match="pipe: is no regular file"):
        write_whole(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    "own", ["run.json", "run.toml", "origin.json", "lock", "report.json", "metrics.jsonl", "trace.jsonl"]
)
def test_a_runs_own_files_are_no_places_for_an_export(runs: Path, own: str) -> None:
    refused(runs, "--safetensors", runs / "a" / own, says=f"a/{own}: {own} in {runs / 'a'} is the run's own")
    refused(runs, "--onnx", runs / "b" / own, says="is the run's own; give another path")


def test_nothing_is_exported_among_checkpoints_whatever_the_way_there(runs: Path, tmp_path: Path) -> None:
    refused(runs, "--onnx", runs / "a/checkpoints/step-00000012/state.pt", says="checkpoints in")
    (tmp_path / "way").symlink_to(runs / "b" / "checkpoints")
    refused(runs, "--safetensors", tmp_path / "way" / "new", says="checkpoints in")
    refused(runs, "--safetensors", runs / "b" / ".." / "a" / "run.json", says="run.json in")


def test_two_files_at_one_path_are_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    twice = ("--onnx", tmp_path / "x", "--safetensors", tmp_path / "sub" / ".." / "x")
    refused(runs, *twice, says="x: is given for two files", folder=tmp_path)
    refused(runs, "--safetensors", runs / "a" / "student.onnx", says="student.onnx: is given for two files")


def test_files_of_a_users_own_are_replaced_in_a_runs_folder_too(runs: Path, tmp_path: Path) -> None:
    files = (tmp_path / "run.json", tmp_path / "checkpoints")  # which are a run's where a run is
    for which in ("b", "a"):
        export_run(runs / which, files[0], safetensors=files[1])
    export_run(runs / "a", tmp_path / "new.onnx", safetensors=tmp_path / "new")
    assert [each.read_bytes() for each in files] == [(tmp_path / name).read_bytes() for name in ("new.onnx", "new")]
    for _ in range(2):
        export_run(runs / "b", safetensors=runs / "b" / "student.safetensors")
    assert (runs / "b" / "student.onnx").is_file()
