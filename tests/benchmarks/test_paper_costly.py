"""Teachers of some cost: the same network in both runtimes, and what stands in for it elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.models import write_cnn
from benchmarks.paper.costly import (
    ENLARGED,
    HIDDEN,
    WIDTHS,
    Size,
    fit_last_layer,
    in_torch,
    logits_of,
    make_costly,
    torch_differs_by,
)
from benchmarks.simulated import KnownSamples
from pipeline.datasets import open_dataset

IDS = np.arange(256)
DIGITS = open_dataset("digits?split=train")
IMAGES, LABELS = DIGITS.read(IDS).fields["image"], DIGITS.labels(IDS)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    path = write_cnn(tmp_path / "teacher.onnx", (16, 16, 24), HIDDEN, enlarge=2)
    fit_last_layer(path, IMAGES, LABELS)
    return path


def test_a_fitted_teacher_knows_the_classes(teacher: Path) -> None:
    seen = np.arange(256, 512)
    answers = logits_of(teacher, DIGITS.read(seen).fields["image"], 256).argmax(axis=1)
    assert (answers == DIGITS.labels(seen)).mean() > 0.85


def test_the_twin_in_pytorch_gives_the_same_logits(teacher: Path) -> None:
    assert torch_differs_by(teacher, IMAGES) < 1e-3


def test_another_network_is_no_twin(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = in_torch(write_cnn(teacher.with_name("other.onnx"), (16, 16, 24), HIDDEN, enlarge=2))
    monkeypatch.setattr("benchmarks.paper.costly.in_torch", lambda path: other)
    with pytest.raises(ValueError, match="in PyTorch its logits differ by"):
        torch_differs_by(teacher, IMAGES)


def test_the_teacher_elsewhere_answers_to_the_bit_and_computes_what_it_does_not_know(
    teacher: Path, tmp_path: Path
) -> None:
    logits = logits_of(teacher, IMAGES, 256)
    known = KnownSamples(teacher, KnownSamples.write(tmp_path / "known", IMAGES, logits))
    assert np.array_equal(known(IMAGES[[7, 3, 7]]), logits[[7, 3, 7]])
    assert np.array_equal(known(IMAGES * np.float32(2)), logits_of(teacher, IMAGES * np.float32(2), 256))


def test_a_teacher_costs_about_what_is_asked_of_it(tmp_path: Path) -> None:
    made = make_costly(tmp_path / "teacher.onnx", 0.02, IMAGES, LABELS, 256)
    assert 0.005 < made.seconds < 0.08
    assert made.size.enlarge in ENLARGED
    assert made.size.width in WIDTHS
    assert logits_of(made.path, IMAGES[:3], 256).shape == (3, 10)


def test_a_larger_teacher_computes_more() -> None:
    assert Size(1, 16).products < Size(2, 16).products < Size(2, 32).products
