"""Students that learn together: each from labels and teachers, and from what the others give for the same views.

Zhang et al. 2018, "Deep Mutual Learning", but that all are updated at once, each from what the others gave before it.
Letters: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.hashing import hash_int, tag
from schemas.errors import CheckpointError, ConfigError
from student_trainer.batches import Batch
from student_trainer.learning.step import Shown, Step
from student_trainer.learning.student_outputs import probe
from student_trainer.learning.students import Network
from student_trainer.learning.terms import Term
from student_trainer.learning.trainee import HALVES, Trainee
from student_trainer.processes.world import World
from student_trainer.run.peer_settings import FIRST
from student_trainer.run.settings import RunSettings

_PEER = tag("student_trainer.peer")


def peers_of(
    settings: RunSettings,
    network: Network,
    total_steps: int,
    labelled_fraction: float,
    device: torch.device,
    terms_of: Callable[[Sequence[str]], Sequence[Term]],
    label_classes: int,
    world: World,
    epoch_rows: int,
) -> Peers:
    """Build a run's students.

    Args:
        settings, network, total_steps, labelled_fraction, device, label_classes, world, epoch_rows: as `Trainee` has
            them.
        terms_of: names of a student's peers -> the run's terms for it.

    Raises:
        ConfigError: as `Trainee`; of a peer it names it.
    """
    found = settings.of_peers()
    half = HALVES.get(settings.train.precision)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    if len(found) > 1:
        for name, own in found.items():
            with _named(name):
                shapes[name] = probe(own.student, network, own.train.seed, device, half)
    trainees = {}
    for name, own in found.items():
        others = {other: each for other, each in shapes.items() if other != name}
        with _named(name):
            trainees[name] = Trainee(
                own,
                network,
                total_steps,
                labelled_fraction,
                device,
                terms_of(list(others)),
                label_classes,
                world,
                epoch_rows,
                others,
            )
    return Peers(trainees)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say of which peer an error is."""
    try:
        yield
    except ConfigError as error:
        if name == FIRST:
            raise
        raise ConfigError(f"[[peers]] {name}: {error}") from None


class Peers:
    """Several trainees that take each step together; of one alone, that one.

    What it says of a student is said of the first one, which is that of [student].
    """

    def __init__(self, trainees: Mapping[str, Trainee]) -> None:
        """`trainees`: name -> student, [student] first."""
        self.each = dict(trainees)
        self.first = next(iter(self.each.values()))
        self._others = {name: each for name, each in self.each.items() if each is not self.first}

    @property
    def model(self) -> nn.Module:
        """The first student."""
        return self.first.model

    @property
    def models(self) -> dict[str, nn.Module]:
        """Name -> each other student."""
        return {name: each.model for name, each in self._others.items()}

    @property
    def labels(self) -> dict[str, int]:
        """Fields of hard labels of positions, and how many classes all students tell apart there."""
        found = dict(self.first.labels)
        for each in self._others.values():
            found |= {field: min(count, found.get(field, count)) for field, count in each.labels.items()}
        return found

    @property
    def skips(self) -> bool:
        """Whether a step that is not finite is skipped alone, as under fp16."""
        return self.first.scaler.is_enabled()

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.first.lr(step)

    def take_step(self, batch: Batch, step: int) -> Step:
        """Let all learn from a batch, unless a loss or gradient of one is not finite: then none does.

        Returns:
            The sum of all losses; rows of the others under `NAME/KEY`; the first one's gradient norm.
        """
        if not self._others:
            return self.first.take_step(batch, step)
        everyone = list(self.each.values())
        for each in everyone:
            each.begin(step)
        try:
            found = self._learned_from(batch, step)
        except Exception:
            for each in everyone:
                each.give_up()
            raise
        for name, each in self.each.items():
            each.judge(found[name][0])
        refused = torch.stack([each.refused for each in everyone]).amax()
        if not self.skips:
            for each in everyone:
                each.refused.copy_(refused)
        norms = [each.end(step) for each in everyone]
        rows = {
            key if each is self.first else f"{name}/{key}": values
            for name, each in self.each.items()
            for key, values in found[name][1].items()
        }
        loss = torch.stack([loss for loss, _ in found.values()]).sum()
        return Step(loss, rows, refused.clone(), norms[0])

    def _learned_from(self, batch: Batch, step: int) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
        """Compute the gradients of all; name -> loss and rows of the whole batch."""
        found: dict[str, list[tuple[Tensor, dict[str, Tensor]]]] = {name: [] for name in self.each}
        for number, part in enumerate(self.first.parts(batch)):
            shown: dict[str, Shown] = {}
            for peer, (name, each) in enumerate(self.each.items()):
                # A function of (seed, step, part, peer): who is asked first is no matter to the others' dropout.
                if peer or number:
                    each.seed_by(hash_int(each.seed_of(step), _PEER, peer, number))
                else:
                    each.seed_by(each.seed_of(step))
                shown[name] = each.show(part)
            for name, each in self.each.items():
                others = {other: one.outputs for other, one in shown.items() if other != name}
                found[name].append(each.learn(shown[name], step, others))
        return {name: self.each[name].joined(parts) for name, parts in found.items()}

    def lost_scale(self) -> float | None:
        """Return the least gradient scale if one fell so low that fp16 holds no gradient any more."""
        found = [scale for each in self.each.values() if (scale := each.lost_scale()) is not None]
        return min(found, default=None)

    def is_finite(self) -> bool:
        """Return whether all weights and running statistics are; waits for the device."""
        return all(each.is_finite() for each in self.each.values())

    def settle(self) -> None:
        """Give each the average of its weights, where the run keeps one, once it learns no more."""
        for each in self.each.values():
            each.settle()

    def state(self) -> dict[str, Any]:
        """Return the first one's state, and the others' by name under `peers`."""
        others = {name: each.state() for name, each in self._others.items()}
        return self.first.state() | ({"peers": others} if others else {})

    def load(self, state: dict[str, Any], place: Path) -> None:
        """Undo `state`. Raises CheckpointError as `Trainee.load`."""
        self.first.load(state, place)
        for name, each in self._others.items():
            if name not in state.get("peers", {}):
                raise CheckpointError(f"{place}: holds no peer {name!r}")
            each.load(state["peers"][name], place)
