"""`distillog runs export` with files of fewer bits."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main

RUN = """
name = "{name}"
source = "dataset"
losses = [{{name = "cross_entropy"}}]
[data]
dataset = "digits?split=train"
[student]
name = "{name}"
[train]
batch_size = 50
steps = 40
[evaluation]
dataset = "digits?split=test"
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["runs", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "mlp.toml").write_text(RUN.format(name="mlp"))
    assert call("start", folder / "mlp.toml", "--folder", folder, "--quiet").exit_code == 0
    return folder


def test_files_of_fewer_bits_are_written_beside_the_one_in_float(folder: Path, tmp_path: Path) -> None:
    files = ("--int8", tmp_path / "a.onnx", "--int8-dynamic", tmp_path / "b.onnx")
    result = call("export", "mlp", "--folder", folder, *files)
    assert result.exit_code == 0, result.output
    assert f"warning: {tmp_path}/b.onnx" in result.stderr
    assert "such a file cannot teach" in result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    at = next(number for number, line in enumerate(lines) if line[:3] == ["FILE", "NUMBERS", "BYTES"])
    own = json.loads(call("evaluate", "mlp", "--folder", folder, "--json").stdout)
    assert lines[at + 1][4] == f"{own['accuracy']:.4f}"
    assert lines[at + 2][:3] == [str(tmp_path / "a.onnx"), "int8", str((tmp_path / "a.onnx").stat().st_size)]
    assert "MatMulInteger" in {each.op_type for each in onnx.load(tmp_path / "b.onnx").graph.node}


@pytest.mark.faults
@pytest.mark.short
def test_all_files_have_the_batch_and_the_opset_that_are_asked_for(folder: Path, tmp_path: Path) -> None:
    (folder / "cnn.toml").write_text(RUN.format(name="cnn"))
    assert call("start", folder / "cnn.toml", "--folder", folder, "--quiet").exit_code == 0
    files = {"int8": tmp_path / "a.onnx", "float16": tmp_path / "b.onnx"}
    options = ("--int8", files["int8"], "--fp16", files["float16"], "--fixed-batch", 4, "--opset", 21, "--json")
    result = call("export", "cnn", "--folder", folder, *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    for each in found["smaller"]:
        path = files.pop(each["kind"])
        assert each["path"] == str(path)
        assert each["file_bytes"] == path.stat().st_size < found["file_bytes"] * 0.6
        assert each["agreement"] > 0.95
    assert not files
    for path in (tmp_path / "a.onnx", tmp_path / "b.onnx", folder / "cnn/student.onnx"):
        model = onnx.load(path)
        assert [each.version for each in model.opset_import if not each.domain] == [21]
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
        names = {"distillog.class_names", "distillog.inputs", "distillog.view"}
        assert {each.key for each in model.metadata_props} == names
    refused = call("export", "cnn", "--folder", folder, "--int8-dynamic", tmp_path / "c.onnx")
    assert "3 convolutions, which dynamic int8 leaves as they are: take --int8" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "c.onnx").exists()
    late = call("export", "cnn", "--folder", folder, "--opset", 99)
    assert "student.onnx: not written: this student cannot be had in opset 99, only in" in late.stderr


def test_what_cannot_be_exported_so_is_one_line(folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "a.onnx"
    twice = call("export", "mlp", "--folder", folder, "--int8", one, "--fp16", one)
    assert "is given for two files" in twice.stderr
    own = call("export", "mlp", "--folder", folder, "--int8", folder / "mlp/report.json")
    assert "is the run's own" in own.stderr
    assert call("export", "mlp", "--folder", folder, "--calibrate", "digits").exit_code == 2
    assert not one.exists()


@pytest.mark.parametrize("option", ["--onnx", "--int8", "--fp16", "--safetensors"])
def test_files_of_another_kind_are_not_written_over(folder: Path, tmp_path: Path, option: str) -> None:
    for name, content in {
        "contents.json": b'{"format": 1}\n',
        "0.avro": b"Obj\x01",
        "notes.onnx": b"do not lose me\n",
        "other": b"\x08\0\0\0\0\0\0\0{}      " if option != "--safetensors" else b"\x08\x0a\x12\x07pytorch\x3a\0",
    }.items():
        (tmp_path / name).write_bytes(content)
        refused = call("export", "mlp", "--folder", folder, option, tmp_path / name)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert f"{tmp_path / name}: what lies there is no " in refused.stderr
        assert (tmp_path / name).read_bytes() == content


def test_files_of_its_kind_and_empty_ones_are_replaced(folder: Path, tmp_path: Path) -> None:
    files = {"--onnx": tmp_path / "a.onnx", "--int8": tmp_path / "b.onnx", "--safetensors": tmp_path / "c"}
    options = [each for pair in files.items() for each in pair]
    for _ in range(2):
        result = call("export", "mlp", "--folder", folder, *options)
        assert result.exit_code == 0, result.output
    for path in files.values():
        size = path.stat().st_size
        path.write_bytes(b"")
        assert call("export", "mlp", "--folder", folder, *options).exit_code == 0
        assert path.stat().st_size == size > 0
