"""A student in training: the network, its optimizer, and one step of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.hashing import hash_int, tag
from pipeline.user_code import said
from schemas.errors import ConfigError
from student_trainer.batches import Batch, Share
from student_trainer.learning.average import Average
from student_trainer.learning.fitting import fit, label_limits
from student_trainer.learning.frozen import freeze
from student_trainer.learning.guard import Guard
from student_trainer.learning.in_parts import refuse_in_parts, refuse_parted_in_parts, refuse_positions_in_parts
from student_trainer.learning.optimizers import build_optimizer, heeds_found_inf
from student_trainer.learning.own_targets import OwnTargets
from student_trainer.learning.schedules import build_schedule
from student_trainer.learning.step import Shown, Step
from student_trainer.learning.student_inputs import StudentInputs
from student_trainer.learning.student_outputs import StudentOutputs, probe
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.terms import Term
from student_trainer.learning.total import total_loss
from student_trainer.learning.weights import load_weights, misfit, tensors_sha256
from student_trainer.learning.whole_batch import WholeBatch
from student_trainer.processes.gradients import differing, summed
from student_trainer.processes.world import ALONE, World
from student_trainer.run.settings import RunSettings

_STEP = tag("student_trainer.step")
_MASK = (1 << 63) - 1
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SCALE = 2.0**-16
"""It begins at 2^16 and halves with each step skipped: 32 of them in a row, or more than ever come right again."""


class Trainee:
    """Everything that a step reads and changes; its state is that of a checkpoint."""

    def __init__(
        self,
        settings: RunSettings,
        network: Network,
        total_steps: int,
        labelled_fraction: float,
        device: torch.device,
        terms: Sequence[Term],
        label_classes: int = 0,
        world: World = ALONE,
        epoch_rows: int = 1,
        of_peers: Mapping[str, Mapping[str, tuple[int, ...]]] | None = None,
    ) -> None:
        """Build the student and all that it learns with.

        Args:
            settings, network, total_steps, labelled_fraction, device, terms: as the run has settled them.
            label_classes: how many classes true labels have; 0: as many as the network is built for.
            world: the processes that learn together, each from its share of a batch.
            epoch_rows: rows of an epoch, at whose end the weights become the past.
            of_peers: name of each other student -> the shapes of a row of its outputs.
        """
        train = settings.train
        self._world = world
        self._batch_size = train.batch_size
        self._at_once = train.micro_batch or train.batch_size
        self._taken = 0
        """Steps of this process."""
        self._share = Share(world.rank, world.size).rows(train.batch_size)
        self.fields = network.fields
        self._name = settings.student.name
        self.device = device
        if world.size > 1:
            refuse_positions_in_parts(terms)
            refuse_parted_in_parts(terms)
        first, last = self._share
        if self._at_once < last - first:
            refuse_in_parts(terms, "[train] micro_batch has it learned in parts: leave that out")
        self._half = HALVES.get(train.precision)
        given = probe(settings.student, network, train.seed, device, self._half)
        projections = fit(terms, given, label_classes or network.num_classes, train.seed, of_peers)
        self.labels = label_limits(terms, given)
        """Fields of hard labels of positions, and how many classes the student tells apart there."""
        self.model: nn.Module = build_student(settings.student, network, train.seed).to(device).train()
        self._inputs = StudentInputs(self.model, network.fields)
        self.outputs = StudentOutputs(self.model, settings.student.outputs)
        freeze(self.model, settings.student.frozen)
        if world.size > 1:
            _refuse_batch_norm(self._name, self.model)
        self._projections = {key: layer.to(device) for key, layer in projections.items()}
        models = [self.model, *self._projections.values()]
        self._learned = [each for model in models for each in model.parameters() if each.requires_grad]
        self.optimizer = build_optimizer(settings.optimizer, self.model, self._projections)
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        """Learning rate of each group at the schedule's factor 1."""
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self._guard = Guard(self.model, device, skips=self.scaler.is_enabled())
        self._asks = not (self.scaler.is_enabled() or heeds_found_inf(self.optimizer))
        """Whether each step has to wait for the device: a user's optimizer takes any step that it is asked to."""
        if not self.scaler.is_enabled():
            self.optimizer.found_inf = self._guard.refused  # type: ignore[attr-defined]
        self._own = OwnTargets(terms, settings, network, device, self._half, epoch_rows)
        self._not_alone = self._own.copied or bool(of_peers)
        """Whether other networks see the same views."""
        # All processes have equal weights, and rank 0 alone evaluates and saves.
        keeps = train.ema is not None and (not world.rank or self._own.of_average)
        self._average = Average(self.model, train.ema) if keeps and train.ema is not None else None
        self._schedule = build_schedule(settings.schedule, total_steps)
        whole = WholeBatch(world, train.batch_size) if world.size > 1 else None
        self._loss = total_loss(terms, labelled_fraction, self._projections, total_steps, whole)
        self._lr = settings.optimizer.lr
        self._clip_norm = settings.optimizer.clip_norm
        # Dropout on the rows of each process is of its own.
        self._seeds = hash_int(train.seed, _STEP, *([world.rank] if world.rank else []))

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, of parameters that are in no group of their own."""
        return self._lr * self._schedule(step)

    def take_step(self, batch: Batch, step: int) -> Step:
        """Learn from a batch, unless its loss or gradient is not finite; then, and from then on, nothing is learned.

        Under fp16 such a step is skipped alone: an overflow is the gradient scaler's business.
        """
        self.seed_by(self.seed_of(step))
        self.begin(step)
        try:
            loss, rows = self.joined([self.learn(self.show(part), step) for part in self.parts(batch)])
        except Exception:
            self.give_up()
            raise
        self.judge(loss)
        norm = self.end(step)
        return Step(loss, rows, self.refused.clone(), norm)

    # What a step is made of, in this order, for those who take it with others.

    def seed_of(self, step: int) -> int:
        """Return the seed of a step's chance, such as dropout's.

        It is a function of (seed, step), so that a resumed run needs no generator's state.
        """
        return (self._seeds + step) & _MASK

    def seed_by(self, seed: int) -> None:
        """Begin a step's chance anew."""
        torch.default_generator.manual_seed(seed & _MASK)  # torch.manual_seed looks at every backend first: 60 us
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed & _MASK)

    def begin(self, step: int) -> None:
        """Make ready for a step."""
        factor = self._schedule(step)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.zero_grad()
        self._own.begin(self.model, self._average)
        self._guard.begin()

    def parts(self, batch: Batch) -> list[Batch]:
        """Return a batch in the parts that go through the student at once."""
        return batch.parts(self._at_once)

    def show(self, part: Batch) -> Shown:
        """Let the student, and its copies, see a part of a batch."""
        if self.device.type != "cpu":
            part = part.to(self.device)
        before = {name: each._version for name, each in part.inputs.items()}
        of_copies = self._own.of_copies(part.inputs)
        if self._half is None:
            outputs = self._inputs.hand(part.inputs, self.outputs)
        else:
            with torch.autocast(self.device.type, self._half):
                outputs = self._inputs.hand(part.inputs, self.outputs)
        changed = [name for name, each in part.inputs.items() if each._version != before[name]]
        if changed and self._not_alone:
            raise ConfigError(
                f"[student] {self._name}: changes its input {changed[0]!r} in place, which its peers, or its own "
                "average or past, are shown, too: let `forward` make a tensor of its own"
            )
        return Shown(part, outputs, of_copies)

    def learn(
        self, shown: Shown, step: int, of_peers: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add a part's gradients to those that are there; its part of the batch's loss, and its rows.

        `of_peers`: name -> what each other student gave for it.
        """
        part = shown.part
        targets = {**part.targets, **self._own.targets(shown.outputs, shown.of_copies, of_peers or {})}
        loss, rows = self._loss(shown.outputs, targets, part.labels, part.weights, step)
        if not loss.requires_grad:
            raise ConfigError(f"[student] frozen: none of the [[losses]] depends on what learns in {self._name}")
        if len(part.labels) != self._batch_size:
            loss = loss * (len(part.labels) / self._batch_size)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), rows

    def joined(self, parts: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the rows of the whole batch, and make the gradients those of all processes together."""
        (loss, rows), *others = parts
        for more, rows_of_it in others:
            loss = loss + more
            rows = {key: torch.cat([found, rows_of_it[key]]) for key, found in rows.items()}
        return (loss, rows) if self._world.size == 1 else self._summed(loss, rows)

    def give_up(self) -> None:
        """Undo what a step that fails has changed."""
        self._guard.give_up()

    def judge(self, loss: Tensor) -> None:
        """Look whether the step may be taken: whether the loss and all gradients are finite."""
        self._guard.check(loss, self._gradients())

    @property
    def refused(self) -> Tensor:
        """Scalar float32 on the device: 1 where the step is not taken."""
        return self._guard.refused

    def end(self, step: int) -> Tensor | None:
        """Take the step, unless it is refused; the L2 norm of all gradients before they were clipped, if they are."""
        norm = None
        if not self._asks or not self._guard.refused:
            if self._clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                norm = nn.utils.clip_grad_norm_(self._learned, self._clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self._guard.undo()
        if self._average is not None:
            self._average.update(step, self._guard.refused)
        self._own.end(self.model, step)
        self._taken += 1
        if self._world.size > 1 and self._taken & (self._taken - 1) == 0:
            self._refuse_drift()
        return norm

    def _refuse_drift(self) -> None:
        """Raise ConfigError where the processes' students are not the same any more."""
        if names := differing(self._world, self.model.state_dict(), self.device):
            raise ConfigError(
                f"[student] {self._name}: {names[0]} is another on each process after step {self._taken}: it changes "
                "with the rows that one process sees, or by chance; train in one process, or without it"
            )

    def _summed(self, loss: Tensor, rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Put the whole batch's gradients in place of this process's; the loss and the rows of the whole batch."""
        watched = self._guard.statistics()
        return summed(self._world, self._learned, loss, rows, self._share, self._batch_size, watched)

    def _gradients(self) -> list[Tensor]:
        return [each.grad for each in self._learned if each.grad is not None]

    def lost_scale(self) -> float | None:
        """Return the gradient scale if it fell so low that fp16 holds no gradient any more; waits for the device."""
        scale = self.scaler.get_scale()
        return scale if self.scaler.is_enabled() and scale < _LEAST_SCALE else None

    def is_finite(self) -> bool:
        """Return whether all weights and running statistics are; waits for the device."""
        watched = [*self._learned, *self._guard.statistics()]
        return bool(torch.stack([torch.isfinite(each).all() for each in watched]).all())

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the student has the average of its weights, where the run keeps one; it does not learn there."""
        return nullcontext() if self._average is None else self._average.in_place()

    def settle(self) -> None:
        """Give the student the average of its weights, where the run keeps one, once it learns no more."""
        if self._average is not None:
            self._average.settle()

    def state(self) -> dict[str, Any]:
        """Return the state dicts: weights with buffers, projections, optimizer, scaler, average and past."""
        average = {} if self._average is None else {"average": self._average.state()}
        return (
            average
            | self._own.state()
            | {
                "model": self.model.state_dict(),
                "projections": {key: layer.state_dict() for key, layer in self._projections.items()},
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
        )

    def load(self, state: dict[str, Any], place: Path) -> None:
        """Undo `state`, as it was read from a checkpoint.

        Raises:
            CheckpointError: the student, or its optimizer, is another one than it was.
        """
        load_weights(self.model, state["model"], self._name, place)
        for key, layer in self._projections.items():
            load_weights(layer, state["projections"].get(key, {}), self._name, place)
        # An optimizer knows its parameters by their places alone.
        if list(self.model.state_dict()) != list(state["model"]):
            raise misfit(self._name, place, "its weights have another order")
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except MemoryError:
            raise
        except Exception as error:  # an optimizer, too, may be of the user's own
            raise misfit(self._name, place, f"its optimizer does not take the saved state ({said(error)})") from error
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load(state.get("average", {}))
        self._own.load(state)


def _refuse_batch_norm(name: str, model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ConfigError(
                f"[student] {name}: {path} is a batch norm, whose statistics would be those of one process's rows: "
                "train in one process, or with another norm, such as GroupNorm"
            )


def weights_sha256(model: nn.Module) -> str:
    """Return the hex SHA-256 over a student's weights and buffers (`tensors_sha256`)."""
    return tensors_sha256(model.state_dict())
