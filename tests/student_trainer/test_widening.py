"""Whatever the codec and the device, a loss sees float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from train_runs import digits_run

from schemas.codecs import CODECS, CodecSpec, Steps
from schemas.records import Output
from student_trainer.batches import Batch, cut
from student_trainer.learning.losses import LOSSES, Loss
from student_trainer.learning.students import Network
from student_trainer.learning.targets import Target, TargetSpec, TopKTarget
from student_trainer.learning.terms import Term, resolve
from student_trainer.learning.total import total_loss
from student_trainer.learning.trainee import Trainee
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.sources.base import Cursor, LabelledOrder

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WITHOUT_DRAWS = [codec for codec in CODECS if codec not in ("sampled", "head")]
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]


def spec(codec: str) -> CodecSpec:
    return CodecSpec(codec, k=5) if codec in ("topk", "topk8", "sampled") else CodecSpec(codec)


def batch_of(logits: np.ndarray[Any, Any], codec: str) -> Batch:
    """One batch of a teacher's [B, C] logits as they come from a record, of samples 0, 1, 2, ..."""
    ids = np.arange(len(logits))
    target = Output.of("logits", logits, spec(codec)).values()
    order = LabelledOrder(0, 0, 7, ids, ids % 2, {"t.logits": target})
    (((rows, _),),) = cut([order], len(ids), Cursor.start(), 1)
    return Batch(rows.sample_ids, {"x": torch.ones(len(ids), 3)}, rows.labels, rows.targets)


def distilled(loss: str, temperature: float = 1.0, **train: Any) -> RunSettings:
    document = digits_run(train=train).as_dict()
    document |= {"source": "stream", "data": {"stream": "s"}, "teachers": [{"name": "t"}]}
    return run_settings(document | {"losses": [{"name": loss, "temperature": temperature}]})


def terms(run: RunSettings, codec: str, num_classes: int) -> tuple[Term, ...]:
    return resolve(run, {"t.logits": TargetSpec("logits", (num_classes,), num_classes, spec(codec), default=True)})


def sharp(rows: int, classes: int, spread: float = 3.0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(0).standard_normal((rows, classes)) * spread).astype(np.float32)


def stored(logits: np.ndarray[Any, Any], codec: str) -> np.ndarray[Any, Any]:
    """The logits that a codec keeps, but for top-k, which keeps those of some classes."""
    if not spec(codec).keeps_all:
        return logits
    rows = Output.of("logits", logits, spec(codec)).values()
    return rows.values() if isinstance(rows, Steps) else rows.columns["logits"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("codec", WITHOUT_DRAWS)
def test_a_loss_sees_float32(codec: str, device: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def spy(logits: Tensor, target: Target, labels: Tensor, temperature: float) -> Tensor:
        if isinstance(target, TopKTarget):
            seen.extend(each.dtype for each in (logits, target.log_probs, *target.log_tails.values()))
        else:
            seen.extend((logits.dtype, target.logits.dtype))
        return logits.sum(dim=1)

    monkeypatch.setitem(LOSSES, "spy", Loss(spy, frozenset({"teacher"})))
    run = distilled("spy", precision=precision)
    trainee = Trainee(run, Network.of("x", (3,), 10), 5, 1.0, torch.device(device), terms(run, codec, 10))
    trainee.take_step(batch_of(sharp(4, 10), codec), 0)
    assert len(seen) >= 2
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("codec", WITHOUT_DRAWS)
def test_a_student_equal_to_its_teacher_costs_nothing_with_50_000_classes(codec: str, device: str) -> None:
    logits = sharp(4, 50_000)
    batch = batch_of(logits, codec).to(torch.device(device))
    loss, rows = total_loss(terms(distilled("forward_kl"), codec, 50_000), 1.0)(
        {"logits": torch.tensor(stored(logits, codec), device=device)},
        batch.targets,
        batch.labels,
    )
    # The tail of top-k is exact, its classes' log-probabilities are rounded.
    assert (rows["forward_kl"] >= (-1e-3 if spec(codec).k else 0)).all()
    assert abs(loss.item()) < (1e-3 if spec(codec).k else 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("codec", ["float32", "float16"])
def test_gradients_are_those_of_float64_with_152_000_classes(codec: str, device: str) -> None:
    temperature, teacher = 8.0, sharp(2, 152_000)
    batch = batch_of(teacher, codec).to(torch.device(device))
    student = torch.tensor(np.roll(teacher, 7, axis=1), device=device, requires_grad=True)
    run = distilled("forward_kl", temperature)
    loss, _ = total_loss(terms(run, codec, 152_000), 1.0)({"logits": student}, batch.targets, batch.labels)
    loss.backward()

    exact = student.detach().cpu().double().requires_grad_()
    kept = torch.tensor(stored(teacher, codec)).double()
    p = functional.log_softmax(kept / temperature, dim=1)
    q = functional.log_softmax(exact / temperature, dim=1)
    (temperature**2 * (p.exp() * (p - q)).sum(dim=1)).mean().backward()
    assert student.grad is not None
    assert exact.grad is not None
    difference = (student.grad.cpu().double() - exact.grad).abs().sum() / exact.grad.abs().sum()
    assert difference < 1e-4
