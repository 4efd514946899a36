"""Targets in steps (int8, int4): narrow until a batch is on its device, and then NumPy's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schemas.codecs import CodecSpec, Steps
from schemas.errors import ConfigError
from schemas.records import Output
from student_trainer.learning.mean_losses import forward_kl, logit_mse, mse, reverse_kl
from student_trainer.learning.targets import StepsTarget, target_of

CODECS = ("int8", "int4")


def stored(codec: str, shape: tuple[int, ...], *, classes: bool = True) -> tuple[Steps, StepsTarget]:
    values = np.random.default_rng(0).normal(0, 4, shape).astype(np.float32)
    rows = Output.of("y", values, CodecSpec(codec), classes=classes).values()
    assert isinstance(rows, Steps)
    target = target_of(rows, {name: torch.tensor(column) for name, column in rows.columns.items()})
    assert isinstance(target, StepsTarget)
    return rows, target


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(5, 1), (5, 2), (5, 7), (5, 3, 8), (5, 2, 3, 3)], ids=str)
def test_logits_are_widened_to_the_bits_that_numpy_makes(codec: str, shape: tuple[int, ...]) -> None:
    rows, target = stored(codec, shape)
    assert target.shape == shape
    assert target.to(torch.device("cpu")).codes.dtype == torch.uint8
    assert target.widened().logits.numpy().tobytes() == rows.values().tobytes()
    assert torch.equal(target.logits, target.widened().logits)
    with pytest.raises(ConfigError, match="no features"):
        _ = target.features


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 4), (5, 3, 5)], ids=str)
def test_features_are_widened_to_the_bits_that_numpy_makes(codec: str, shape: tuple[int, ...]) -> None:
    rows, target = stored(codec, shape, classes=False)
    assert target.shape == shape
    assert target.widened().features.numpy().tobytes() == rows.values().tobytes()
    assert torch.equal(target.features, target.widened().features)
    with pytest.raises(ConfigError, match="no softmax"):
        _ = target.logits


@pytest.mark.parametrize("codec", CODECS)
def test_every_loss_and_temperature_of_all_classes_takes_them(codec: str) -> None:
    rows, target = stored(codec, (5, 9))
    same = torch.tensor(rows.values())
    for temperature in (0.5, 1.0, 7.0):
        assert abs(forward_kl(same + 3, target, temperature).item()) < 1e-5
        assert abs(reverse_kl(same + 3, target, temperature).item()) < 1e-5
    assert logit_mse(same + 3, target).item() < 1e-9
    rows, target = stored(codec, (5, 9), classes=False)
    assert mse(torch.tensor(rows.values()), target).item() == 0
