"""Targets by the codec head: logits are rebuilt per batch, in float32, by a layer that travels with no batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.heads import bound, layer
from torch.nn import functional
from train_runs import digits_run

from schemas.codecs import CodecSpec, Hidden
from schemas.errors import ConfigError, PeerLost
from schemas.head import Head
from schemas.hidden import with_head
from schemas.positions import Chosen, Positions
from schemas.records import Output
from student_trainer.batches import cut
from student_trainer.learning import mean_losses
from student_trainer.learning.targets import DenseTarget, HeadTarget, TargetSpec, target_of
from student_trainer.learning.terms import resolve
from student_trainer.processes.frames import know_heads, pack, unpack
from student_trainer.run.settings import run_settings
from student_trainer.sources.base import Cursor, LabelledOrder

C, H = 9, 6
HEAD = layer(C, H)
HIDDEN = np.random.default_rng(1).standard_normal((12, H)).astype(np.float32)


def stored(hidden: Any = HIDDEN, chosen: Chosen | None = None) -> Any:
    rows = Output.of("logits", hidden, CodecSpec("head", H), num_classes=C, chosen=chosen).values()
    return replace(rows, head=HEAD) if isinstance(rows, Hidden) else rows


def target(hidden: Any = HIDDEN) -> HeadTarget:
    rows = stored(hidden)
    found = target_of(rows, {"hidden": torch.from_numpy(rows.hidden.copy())})
    assert isinstance(found, HeadTarget)
    return found


def test_logits_of_a_batch_are_the_dense_ones_within_the_error_of_float16() -> None:
    exact = HIDDEN.astype(np.float64) @ HEAD.weight.astype(np.float64).T + HEAD.bias
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = target().widened()
    assert isinstance(found, DenseTarget)
    assert found.logits.dtype == torch.float32
    assert (np.abs(found.logits.numpy() - exact) <= bound(HEAD, HIDDEN)).all()
    assert target().shape == (12, C)
    assert target(HIDDEN.reshape(3, 4, H)).flat().logits.shape == (12, C)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.7])
@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "jsd", "logit_mse", "dist", "standardised"])
def test_each_loss_of_all_classes_is_that_of_the_dense_logits(loss: str, temperature: float) -> None:
    student = torch.randn(12, C, generator=torch.Generator().manual_seed(0))
    dense = DenseTarget(torch.from_numpy(HEAD.logits(HIDDEN.astype(np.float16))))
    extra: dict[str, Any] = {} if loss == "logit_mse" else {"temperature": temperature}
    if loss == "standardised":
        loss, extra = "forward_kl", extra | {"standardise": True}
    function = getattr(mean_losses, loss)
    assert torch.allclose(function(student, target(), **extra), function(student, dense, **extra), rtol=1e-5)


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "forward_kl", "standardise": True, "temperature_schedule": {"name": "linear", "end": 2.0}},
        {"name": "dkd"},
        {"name": "dist"},
        {"name": "logit_mse"},
        {"name": "jsd"},
    ],
)
def test_a_run_takes_it_wherever_all_classes_are_needed(entry: dict[str, Any]) -> None:
    document = digits_run().as_dict() | {"source": "stream", "data": {"stream": "s"}, "teachers": [{"name": "t"}]}
    run = run_settings(document | {"losses": [entry]})
    spec = TargetSpec("logits", (C,), C, CodecSpec("head", H), default=True)
    assert len(resolve(run, {"t.logits": spec}, has_labels=True)) == 1


def test_batches_carry_hidden_rows_alone() -> None:
    order = LabelledOrder(0, 0, 7, np.arange(12), np.zeros(12, np.int64), {"t.logits": stored()})
    ((rows, _),) = next(iter(cut([order], 12, Cursor.start(), 1)))
    found = rows.targets["t.logits"]
    assert isinstance(found, HeadTarget)
    assert (found.hidden.shape, found.hidden.dtype) == ((12, H), torch.float16)


def test_a_message_names_the_layer_that_a_briefing_brought_once() -> None:
    sent = pack(target())
    assert sent.nbytes < HIDDEN.nbytes // 2 + 512
    other = Head.decode(layer(C, H, seed=3).encode(), "here")
    with pytest.raises(PeerLost, match="which its briefing did not bring"):
        unpack(pack(HeadTarget(torch.zeros(1, H).half(), other)))
    kept = Head.decode(HEAD.encode(), "here")
    know_heads([kept])
    received = unpack(sent)
    assert received.head is kept
    assert torch.equal(received.widened().logits, target().widened().logits)
    part = received.between(2, 5)
    assert torch.equal(part.widened().logits, target(HIDDEN[2:5]).widened().logits)


def test_a_target_without_its_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="without the last layer"):
        target_of(replace(stored(), head=None), {"hidden": torch.zeros(1, H)})


def test_rows_of_positions_have_the_layer_too() -> None:
    rows = stored(chosen=Chosen(np.array([5, 0, 7]), np.arange(3)))
    assert isinstance(rows, Positions)
    found = target_of(with_head(rows, HEAD), {"hidden": torch.from_numpy(rows.columns["hidden"].copy())})
    assert torch.equal(found.widened().logits, target().widened().logits)


def test_the_layer_is_brought_to_a_device_once() -> None:
    first, second = target().widened(), target().widened()
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(
        first.logits, functional.linear(target().hidden.float(), *map(torch.from_numpy, (HEAD.weight, HEAD.bias)))
    )
