"""An ONNX model as files: the model itself and the external data that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from pipeline.user_files import refuse_irregular
from schemas.errors import ManifestMismatch, TeacherRejected
from schemas.records import Teacher

_CHUNK = 1 << 20


def external_data(path: Path) -> list[Path]:
    """Files beside the model that hold its large tensors, in the order in which the model names them.

    Raises:
        TeacherRejected: not an ONNX file, a file that is missing, or one outside the model's folder.
    """
    refuse_irregular(path, TeacherRejected)
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise TeacherRejected(f"{path}: no such file") from None
    except OSError as error:
        raise TeacherRejected(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # protobuf's own errors, which differ between its implementations
        raise TeacherRejected(f"{path}: not an ONNX model: {_line(error)}") from None
    if not model.graph.output:
        raise TeacherRejected(f"{path}: not an ONNX model: it has no outputs")
    folder = path.resolve().parent
    names: dict[str, None] = {}
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            names[location] = None
    files = []
    for name in names:
        file = (folder / name).resolve()
        if not name or not file.is_relative_to(folder):
            raise TeacherRejected(f"{path}: names external data outside its folder: {name!r}")
        if not file.is_file():
            raise TeacherRejected(f"{path}: its external data {name!r} is missing in {folder}")
        files.append(file)
    return files


def model_sha256(path: Path) -> str:
    """SHA-256 over the model file and each external-data file that it names, in order: 64 hex digits.

    Raises:
        TeacherRejected: as `external_data`.
    """
    digest = hashlib.sha256()
    for file in [path, *external_data(path)]:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def refuse_another(path: Path, teacher: Teacher, sha256: str | None = None) -> None:
    """Raise ManifestMismatch unless a file is a teacher's model, whose hash may be known."""
    sha256 = sha256 or model_sha256(path)
    if teacher.sha256 != sha256:
        raise ManifestMismatch(
            f"{path} ({sha256[:12]}) is not the model of teacher {teacher.name!r} ({teacher.sha256[:12]}); another "
            "model is another teacher: add it under a name of its own"
        )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model, those of its own functions too."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _of_sparse(graph.sparse_initializer)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Those in attributes, and in the graphs of these."""
    for node in nodes:
        for attribute in node.attribute:
            yield from [attribute.t, *attribute.tensors]
            yield from _of_sparse([attribute.sparse_tensor, *attribute.sparse_tensors])
            for graph in [attribute.g, *attribute.graphs]:
                yield from _of_graph(graph)


def _of_sparse(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for sparse in tensors:
        yield from (sparse.values, sparse.indices)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
