"""The child process in which a worker labels rows that may kill or hang whoever labels them.

`python -m teacher_service.apart.child`, with frames on stdin and stdout: 4 bytes and 8 bytes of length, then a header
(JSON) and a body (bytes). The first says what to open; the answer is `ready`, after one order that is known to be well,
so that all that comes later is warm. Each later one asks for rows; the answers to it are any number of `alive`, then
`labels`, or the error that ends the child. Whatever else writes to stdout writes to stderr. Letters: N rows asked for,
M of them labelled.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import struct
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.datasets import open_dataset
from pipeline.datasets.base import Ints
from pipeline.onnx_runtime import PROVIDERS
from pipeline.tether import end_with
from pipeline.user_code import said
from pipeline.views.fetch import Fetcher
from pipeline.views.patience import fetch_patiently
from schemas.codecs import CodecSpec
from schemas.errors import DistillogError
from schemas.positions import Chosen
from schemas.records import Output, Teacher, ViewSpec
from teacher_service.models.labels import Asked, Labels
from teacher_service.models.session import OnnxTeacher
from teacher_service.stages import DATA_ADVICE, patient_labels

Frame = tuple[dict[str, Any], bytes]

_LENGTHS = struct.Struct("<IQ")


def write_frame(file: IO[bytes], header: dict[str, Any], body: bytes = b"") -> None:
    """Write a frame at once."""
    text = json.dumps(header).encode()
    file.write(_LENGTHS.pack(len(text), len(body)) + text + body)
    file.flush()


def read_frame(file: IO[bytes]) -> Frame | None:
    """Read a frame; None at the end, also in the middle of one: whoever wrote it is gone."""
    lengths = file.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    of_text, of_body = _LENGTHS.unpack(lengths)
    text, body = file.read(of_text), file.read(of_body)
    return (json.loads(text), body) if len(text) == of_text and len(body) == of_body else None


def encode_task(
    fetcher: Fetcher, model: OnnxTeacher, codec: CodecSpec, data_retry: float, sample_ids: Ints, view_seed: int
) -> Frame:
    """Return the first frame: what to open, the stream's codec, and an order that is known to be well."""
    view = fetcher.view
    header = {
        "parent": os.getpid(),
        "dataset": fetcher.dataset.uri,
        "view": {"name": view.name, "params": view.params, "version": view.version},
        "model": str(model.path),
        # The one in use: `auto` might come to another one, and to other bits.
        "provider": next(name for name, provider in PROVIDERS.items() if provider == model.provider),
        "threads": model.threads,
        "codec": asdict(codec),
        "data_retry": data_retry,
        "sequence": 0,
        "sample_ids": sample_ids.tolist(),
        "view_seed": view_seed,
    }
    # Of a generation: the teacher with that file; its number is the worker's business.
    return header, replace(model.teacher, generation=0).encode()


def encode_labels(labels: Labels) -> Frame:
    """Return the answer that holds them: the columns' bytes follow each other in the body."""
    outputs, body = [], []
    for one in labels.outputs:
        columns = [(name, column.dtype.str, column.shape) for name, column in one.columns.items()]
        chosen = None if one.chosen is None else (one.chosen.counts.tolist(), one.chosen.marks.tolist())
        outputs.append((one.name, one.codec, one.num_classes, columns, chosen))
        body += [column.tobytes() for column in one.columns.values()]
    header = {"kind": "labels", "kept": labels.kept.tolist(), "faults": labels.faults, "outputs": outputs}
    return header, b"".join(body)


def decode_labels(answer: Frame) -> Labels:
    """Undo `encode_labels`; arrays are read-only views of the body."""
    header, body = answer
    outputs, at = [], 0
    for output, codec, num_classes, described, positions in header["outputs"]:
        columns = {}
        for name, dtype, shape in described:
            columns[name] = np.ndarray(shape, dtype, body, at)
            at += columns[name].nbytes
        chosen = None if positions is None else Chosen(*(np.array(each, np.int64) for each in positions))
        outputs.append(Output(output, codec, num_classes, columns, chosen))
    faults = tuple((int(row), str(reason)) for row, reason in header["faults"])
    return Labels(np.array(header["kept"], np.int64), faults, tuple(outputs))


class _Labeller:
    """What the worker's stages do to an order, for some rows of it."""

    def __init__(self, task: dict[str, Any], teacher: bytes, answers: IO[bytes]) -> None:
        self._answers = answers
        self._retry = task["data_retry"]
        self._codec = CodecSpec(**{**task["codec"], "temperatures": tuple(task["codec"]["temperatures"])})
        self._fetcher = Fetcher(open_dataset(task["dataset"]), ViewSpec(**task["view"]))
        record = Teacher.decode(teacher, "the worker's stdin")
        self._model = OnnxTeacher(Path(task["model"]), record, task["provider"], task["threads"])

    def label(self, request: dict[str, Any]) -> Frame:
        sequence, view_seed = request["sequence"], request["view_seed"]
        sample_ids = np.array(request["sample_ids"], np.int64)
        fetched = fetch_patiently(
            self._fetcher,
            sample_ids,
            view_seed,
            self._model.size,
            seconds=self._retry,
            what=f"order {sequence}",
            advice=DATA_ADVICE,
            alive=lambda: write_frame(self._answers, {"kind": "alive"}),
        )
        labels = patient_labels(self._model, fetched, self._codec, sequence, Asked(sample_ids, view_seed))
        faults = tuple((int(row), str(reason)) for row, reason in labels.faults)
        return encode_labels(replace(labels, faults=faults))


def main() -> None:
    """Answer until stdin ends, or an error does it."""
    requests, answers = sys.stdin.buffer, _own_stdout()
    faulthandler.enable()
    first = read_frame(requests)
    if first is None:
        return
    end_with(first[0]["parent"], signal.SIGKILL)  # also in the middle of an order
    try:
        labeller = _Labeller(*first, answers)
        began = time.monotonic()
        labeller.label(first[0])
        write_frame(answers, {"kind": "ready", "seconds": time.monotonic() - began})
        while (request := read_frame(requests)) is not None:
            write_frame(answers, *labeller.label(request[0]))
    except DistillogError as error:
        write_frame(answers, {"kind": type(error).__name__, "text": str(error)})
    except BrokenPipeError:
        return  # nobody asks any more
    except Exception as error:  # memory that ran out, storage that is away at the start, a bug
        write_frame(answers, {"kind": "", "text": said(error)})


def _own_stdout() -> IO[bytes]:
    """Keep stdout for the answers alone: what a dataset or a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
