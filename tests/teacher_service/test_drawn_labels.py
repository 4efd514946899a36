"""Labels that are drawn at random are the same whoever draws them, in whatever company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.streams import fetcher, manifest
from support.texts import language_model

from schemas.codecs import CodecSpec
from schemas.errors import EncodeError
from schemas.positions import Positions
from schemas.records import Output
from teacher_service.models.declared import Declared, DeclaredOutput
from teacher_service.models.describe import describe_model
from teacher_service.models.labels import Asked, Labels, label
from teacher_service.models.session import OnnxTeacher

SOURCE = fetcher("support.texts:sentences", "support.texts:masked")
N20 = CodecSpec("sampled", 20)
IDS = np.arange(3, 23)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> OnnxTeacher:
    path: Path = language_model(tmp_path_factory.mktemp("model") / "m.onnx")
    outputs = (DeclaredOutput("scores", "logits", positions="masked"), DeclaredOutput("topic", "topic"))
    declared = Declared(outputs, inputs={"tokens": "input_ids"}, batch=7)
    return OnnxTeacher(path, describe_model(path, "t", manifest(SOURCE, order_size=20), SOURCE, declared), threads=1)


def labels_of(teacher: OnnxTeacher, ids: np.ndarray, seed: int = 5) -> Labels:
    return label(teacher, SOURCE.fetch(ids, 5, teacher.size), N20, Asked(ids, seed))


def data(labels: Labels) -> list[dict]:
    return [one.datum() for one in labels.outputs]


def test_samples_have_their_draws_in_any_company(teacher: OnnxTeacher) -> None:
    whole, parts = labels_of(teacher, IDS), [labels_of(teacher, IDS[:4]), labels_of(teacher, IDS[4:])]
    joined = [Output.joined(each) for each in zip(*(part.outputs for part in parts), strict=True)]
    assert [one.datum() for one in joined] == data(whole)
    order = np.argsort(-IDS)
    backwards = labels_of(teacher, IDS[order])
    for one, other in zip(whole.outputs, backwards.outputs, strict=True):
        before, after = one.values().take(order), other.values()
        for name, column in before.columns.items():
            assert column.tobytes() == after.columns[name].tobytes()


def test_draws_are_of_the_view_the_teacher_and_the_output(teacher: OnnxTeacher) -> None:
    before = labels_of(teacher, IDS)
    assert data(labels_of(teacher, IDS, seed=6)) != data(before)
    renamed = teacher.fed_as(teacher.teacher.inputs, teacher.teacher.inference_batch)
    renamed.teacher = replace(teacher.teacher, name="other")
    assert data(labels_of(renamed, IDS)) != data(before)


def test_positions_of_a_sample_are_drawn_apart(teacher: OnnxTeacher) -> None:
    rows = labels_of(teacher, IDS).outputs[0].values()
    assert isinstance(rows, Positions)
    (draws,) = rows.columns.values()
    assert len({row.tobytes() for row in draws}) == len(draws) > 20


def test_nothing_is_drawn_without_knowing_of_what(teacher: OnnxTeacher) -> None:
    with pytest.raises(EncodeError, match="draws by a seed"):
        label(teacher, SOURCE.fetch(IDS, 5, teacher.size), N20)
