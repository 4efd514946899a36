"""Which files are a teacher, and its hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from support.models import classifier, with_external_data

from pipeline.onnx_runtime import open_session
from schemas.errors import TeacherRejected
from teacher_service.models.files import external_data, model_sha256


def sha256(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_the_hash_of_a_model_in_one_file_is_that_of_the_file(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    assert external_data(path) == []
    assert model_sha256(path) == sha256(path)


def test_the_hash_covers_external_data_in_the_order_in_which_the_model_names_it(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    files = with_external_data(path, "z-first.bin", "parts/a-second.bin")
    assert external_data(path) == [file.resolve() for file in files]
    assert model_sha256(path) == sha256(path, *files)
    open_session(path)  # and ONNX Runtime finds them too

    before = model_sha256(path)
    data = bytearray(files[1].read_bytes())
    data[-1] ^= 1
    files[1].write_bytes(data)
    assert model_sha256(path) != before


def test_two_tensors_in_one_file_count_it_once(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    with_external_data(path, "one.bin", "one.bin")
    assert [file.name for file in external_data(path)] == ["one.bin"]


def test_a_pipe_is_no_model_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(TeacherRejected, match=r"m\.onnx: is no regular file but a folder, a pipe or a device"):
        model_sha256(tmp_path / "m.onnx")


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    (file,) = with_external_data(path, "weights.bin")
    file.unlink()
    with pytest.raises(TeacherRejected, match=r"'weights.bin' is missing"):
        model_sha256(path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "a/../../weights.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = classifier(folder / "m.onnx")
    (file,) = with_external_data(path, "weights.bin")
    _relocate(path, location)
    file.rename(tmp_path / "weights.bin")
    with pytest.raises(TeacherRejected, match="outside its folder"):
        model_sha256(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (folder := tmp_path / "model").mkdir()
    path = classifier(folder / "m.onnx")
    (file,) = with_external_data(path, "weights.bin")
    file.rename(tmp_path / "elsewhere.bin")
    file.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(TeacherRejected, match="outside its folder"):
        model_sha256(path)


@pytest.mark.parametrize("where", ["a function", "an attribute", "a sparse attribute"])
def test_external_data_outside_the_folder_is_found_wherever_the_model_hides_it(tmp_path: Path, where: str) -> None:
    import onnx

    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "secret").write_bytes(b"1234")
    (folder := tmp_path / "model").mkdir()
    path = classifier(folder / "m.onnx")
    model = onnx.load(str(path))
    node = onnx.NodeProto(op_type="Constant", output=["c"])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    if where == "a sparse attribute":
        attribute.sparse_tensor.values.CopyFrom(tensor)
    else:
        attribute.t.CopyFrom(tensor)
    if where == "a function":
        model.functions.add(name="f", domain="mine").node.append(node)
    else:
        model.graph.node.append(node)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(TeacherRejected, match="outside its folder"):
        model_sha256(path)


def _relocate(path: Path, location: str) -> None:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "not an ONNX model"), (b"hello, this is no protobuf", "not an ONNX model"), (None, "no such file")],
)
def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TeacherRejected, match=says) as caught:
        model_sha256(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_model_behind_a_link_is_hashed_and_opened_in_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    path = classifier(tmp_path / "blobs" / "m.onnx")
    with_external_data(path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"another file of the same name beside the link")
    link = tmp_path / "linked.onnx"
    link.symlink_to(path)
    assert model_sha256(link) == model_sha256(path)
    open_session(link)
