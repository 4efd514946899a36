"""Students that learn from each other: all at once, each from what the others gave before the step."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from train_runs import digits_run, run

from pipeline.onnx_runtime import open_session
from schemas.errors import ConfigError
from student_trainer.batches import Batch
from student_trainer.launch import export_run
from student_trainer.learning.peers import Peers, peers_of
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.terms import resolve
from student_trainer.learning.trainee import weights_sha256
from student_trainer.processes.world import ALONE
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.trained import load_student

IMAGE = Network.of("image", (1, 8, 8), 10)
ROWS = 8
SMALL = {"name": "mlp", "hidden": [6], "dropout": 0.0}
WIDE = {"name": "mlp", "hidden": [24], "dropout": 0.0}
PLACES = {"name": "test_peers:places"}
HARD = {"name": "cross_entropy"}
MUTUAL = {"name": "forward_kl", "against": "peers.logits", "temperature": 2.0, "weight": 0.5}


def peers_run(peers: dict[str, dict[str, Any]], *losses: dict[str, Any], **sections: Any) -> RunSettings:
    document = digits_run(train={"batch_size": ROWS, **sections.pop("train", {})}).as_dict()
    document |= {"student": SMALL, "losses": list(losses or (HARD, MUTUAL))} | sections
    document["peers"] = [{"name": name, "student": student} for name, student in peers.items()]
    return run_settings(document)


class Places(nn.Module):
    """Classes of the sample, and at 3 places of it."""

    def __init__(self, num_classes: int, spoils: bool) -> None:
        super().__init__()
        self.logits, self.places, self.spoils = nn.Linear(64, num_classes), nn.Linear(64, 12), spoils

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        flat = (image.mul_(0.5) if self.spoils else image).flatten(1)
        return {"logits": self.logits(flat), "places": self.places(flat).view(-1, 3, 4)}


def places(input_shape: tuple[int, ...], num_classes: int, spoils: bool = False) -> nn.Module:
    return Places(num_classes, spoils)


def batch(step: int, poison: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(ROWS, 1, 8, 8, generator=generator)
    if poison:
        images[3] = torch.nan
    return Batch(torch.arange(ROWS), {"image": images}, torch.randint(10, (ROWS,), generator=generator))


def learners(settings: RunSettings) -> Peers:
    terms = partial(resolve, settings, {}, True, dict)
    return peers_of(settings, IMAGE, 12, 1.0, torch.device("cpu"), terms, 10, ALONE, 10**6)


def kl(teacher: Tensor, student: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 KL(teacher || student), [B]."""
    soft = functional.softmax(teacher / temperature, dim=1)
    own = functional.log_softmax(student / temperature, dim=1)
    return temperature**2 * (soft * (soft.log() - own)).sum(dim=1)


def plain(settings: RunSettings, steps: int) -> dict[str, dict[str, Tensor]]:
    """The same by hand: name -> weights."""
    found = settings.of_peers()
    models = {name: build_student(own.student, IMAGE, own.train.seed).train() for name, own in found.items()}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for name, model in models.items()}
    for step in range(steps):
        data = batch(step)
        outputs = {name: model(data.inputs["image"]) for name, model in models.items()}
        for name in models:
            others = [outputs[other].detach() for other in models if other != name]
            mutual = torch.stack([kl(other, outputs[name]).mean() for other in others]).mean()
            loss = functional.cross_entropy(outputs[name], data.labels) + 0.5 * mutual
            optimizers[name].zero_grad()
            loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
    return {name: model.state_dict() for name, model in models.items()}


@pytest.mark.parametrize("peers", [{"wide": WIDE}, {"wide": WIDE, "twin": SMALL}])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_each_learns_from_labels_and_from_what_the_others_gave(peers: dict[str, Any], micro_batch: int | None) -> None:
    train = {} if micro_batch is None else {"micro_batch": micro_batch}
    settings = peers_run(peers, train=train, schedule={"name": "constant"})
    together = learners(settings)
    for step in range(6):
        together.take_step(batch(step), step)
    for name, weights in plain(settings, 6).items():
        for key, each in weights.items():
            torch.testing.assert_close(together.each[name].model.state_dict()[key], each, rtol=1e-4, atol=1e-5)


def test_the_mean_of_the_peers_may_be_one_teacher() -> None:
    mean = {**MUTUAL, "mean": "probabilities"}
    together = learners(peers_run({"wide": WIDE, "twin": SMALL}, HARD, mean))
    given: dict[str, Tensor] = {}
    for name, each in together.each.items():
        each.model.register_forward_hook(
            lambda module, inputs, output, name=name: given.update({name: output.detach()})
        )
    step = together.take_step(batch(0), 0)
    soft = (functional.softmax(given["wide"] / 2, 1) + functional.softmax(given["twin"] / 2, 1)) / 2
    expected = 4 * (soft * (soft.log() - functional.log_softmax(given["student"] / 2, 1))).sum(1)
    torch.testing.assert_close(step.rows["forward_kl"], expected)
    names = {"cross_entropy", "forward_kl"}
    assert step.rows.keys() == names | {f"{peer}/{name}" for peer in ("wide", "twin") for name in names}


def test_a_student_that_changes_what_the_others_see_is_refused_at_the_first_step() -> None:
    together = learners(peers_run({"wide": {**PLACES, "spoils": True}}))
    with pytest.raises(ConfigError, match="places: changes its input 'image' in place"):
        together.take_step(batch(0), 0)


def test_where_one_is_not_finite_none_learns() -> None:
    together = learners(peers_run({"wide": WIDE}))
    together.take_step(batch(0), 0)
    before = [weights_sha256(each.model) for each in together.each.values()]
    for parameter in together.each["wide"].model.parameters():
        parameter.data[...] = 3e38
        break
    spoilt = [before[0], weights_sha256(together.each["wide"].model)]
    for step in (1, 2):
        assert together.take_step(batch(step), step).refused
    assert [weights_sha256(each.model) for each in together.each.values()] == spoilt


def test_a_resumed_run_has_the_same_bits_of_all_and_each_is_evaluated_and_exported(tmp_path: Path) -> None:
    dropout = {"name": "mlp", "hidden": [12], "dropout": 0.3}
    settings = peers_run(
        {"wide": WIDE, "other": dropout},
        evaluation={"dataset": "digits?split=test"},
        student=dropout,
        train={"ema": 0.5, "batch_size": 50, "steps": 9},
        checkpoint={"every": 1, "keep": 99},
    )
    whole = run(tmp_path / "r", settings)
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    scores = lines[-1]["evaluation"]
    assert {"accuracy", "wide/accuracy", "other/accuracy"} <= scores.keys()
    assert scores["accuracy"] != scores["other/accuracy"]
    shutil.copytree(tmp_path / "r", tmp_path / "s")
    for place in (tmp_path / "s" / "checkpoints").iterdir():
        if int(place.name.removeprefix("step-")) > 4:
            shutil.rmtree(place)
    again = run(tmp_path / "s", settings)
    assert again.weights_sha256 == whole.weights_sha256
    for name, model in whole.peers.items():
        assert weights_sha256(again.peers[name]) == weights_sha256(model) != whole.weights_sha256
    exported = export_run(tmp_path / "r", peer="wide")
    assert exported["path"] == tmp_path / "r" / "wide.onnx"
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    (given,) = open_session(exported["path"], threads=1).run(None, {"image": images})
    with torch.no_grad():
        expected = load_student(tmp_path / "r", "wide").model(torch.tensor(images)).numpy()
    assert given == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ConfigError, match="there is no peer 'wid': did you mean 'wide'"):
        load_student(tmp_path / "r", "wid")


@pytest.mark.parametrize(
    ("peers", "losses", "says"),
    [
        ([{"name": "twin", "student": SMALL, "seed": 0}], [MUTUAL], "twin: has the network and the seed of another"),
        ([{"name": "student", "student": WIDE}], [MUTUAL], "is that of"),
        ([{"name": "a", "student": WIDE}, {"name": "a", "student": SMALL}], [MUTUAL], "two are called 'a'"),
        ([{"name": "a", "student": {**WIDE, "inputs": ["image"]}}], [MUTUAL], "all peers take what"),
        ([{"name": "a", "student": WIDE}], [HARD], "no loss is against"),
        ([], [MUTUAL], r"the run has no \[\[peers\]\]"),
        (
            [{"name": "a", "student": WIDE}],
            [{**MUTUAL, "against": "peers.exit"}],
            "'peers.a.exit': the student gives no",
        ),
        (
            [{"name": "a", "student": PLACES}, {"name": "b", "student": PLACES}],
            [HARD, {**MUTUAL, "on": "places", "against": "peers.places", "choose": "confidence"}],
            "'peers.a.places': choose = \"confidence\" takes one teacher for each sample",
        ),
        ([{"name": "a", "student": {"name": "mlp", "hiden": [2]}}], [MUTUAL], r"\[\[peers\]\] a: .*hiden"),
    ],
)
def test_what_cannot_be_is_refused(peers: list[dict[str, Any]], losses: list[dict[str, Any]], says: str) -> None:
    student = PLACES if "places" in says else SMALL
    document = digits_run().as_dict() | {"student": student, "losses": losses, "peers": peers}
    with pytest.raises(ConfigError, match=says):
        learners(run_settings(document))
