"""Targets that a student gives itself: its deeper exits to the shallower ones, and its past to its present.

| against | is what | of |
|---|---|---|
| self.OUTPUT | the same forward pass gives there, as a constant | Zhang et al. 2019, "Be Your Own Teacher" |
| average.OUTPUT | the moving average of the weights gives for the views | Tarvainen & Valpola 2017, "Mean Teacher" |
| past.OUTPUT | the weights at the end of the last epoch give for them | Kim et al. 2021, "PS-KD" |

The last two are in evaluation mode, without gradients. Before there is an average (step 0) or a past (the first epoch)
their losses are 0. Letters: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from schemas.codecs import CodecSpec
from schemas.errors import ConfigError
from student_trainer.learning.average import Average, averaged
from student_trainer.learning.student_inputs import StudentInputs
from student_trainer.learning.student_outputs import StudentOutputs, pick
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.targets import DenseTarget, FeatureTarget, Target, TargetSpec
from student_trainer.learning.terms import Term
from student_trainer.run.settings import RunSettings

_WITHOUT_SOFTMAX = frozenset({"features", "multilabel"})
"""What losses need that take an output number by number."""


def own_spec(term: Term, given: Mapping[str, tuple[int, ...]]) -> TargetSpec:
    """Return what a term's own target is: of the kind that its loss asks for.

    Args:
        term: one that has an `own`.
        given: shape of a row of each of the student's outputs.

    Raises:
        ConfigError: the student gives no such output, or the term compares an output with itself.
    """
    whose, _, output = term.own.partition(".")
    what = f"[[losses]] {term.key}: against {term.own!r}"
    try:
        shape = pick(given, output)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
    if whose == "self" and pick({name: name for name in given}, term.on) == output:
        raise ConfigError(f"{what} is the output that the loss is on: name another with `on`")
    if term.loss.needs & _WITHOUT_SOFTMAX:
        return TargetSpec("features", shape, 0, CodecSpec())
    return TargetSpec("logits", shape, shape[-1] if shape else 0, CodecSpec())


class OwnTargets:
    """The own targets of a run's terms, and the copies of the student that some of them need."""

    def __init__(
        self,
        terms: Sequence[Term],
        settings: RunSettings,
        network: Network,
        device: torch.device,
        half: torch.dtype | None,
        epoch_rows: int,
    ) -> None:
        """Build the copies.

        Args:
            terms: the run's.
            settings, network, device: as the student's.
            half: what autocast computes in; None: no autocast.
            epoch_rows: rows of an epoch: after each step that completes one, the weights become the past.
        """
        self._of = {term.own: term for term in terms if term.own}
        self._epoch_rows, self._batch_size = epoch_rows, settings.train.batch_size
        self._copies = {
            whose: _Copy(settings, network, device, half)
            for whose in dict.fromkeys(name.partition(".")[0] for name in self._of)
            if whose != "self"
        }
        self._there: set[str] = set()
        """Whose weights the copies have by now."""

    @property
    def of_average(self) -> bool:
        """Whether some are the average's, which each process then keeps."""
        return "average" in self._copies

    def begin(self, model: nn.Module, average: Average | None) -> None:
        """Give the copy its average, before a step."""
        if self.of_average and average is not None and (values := average.state()):
            self._take("average", averaged({"model": model.state_dict(), "average": values}))

    def end(self, model: nn.Module, step: int) -> None:
        """Make the weights the past, where a step, from 0, completes an epoch."""
        rows = self._batch_size * step
        if "past" in self._copies and (rows + self._batch_size) // self._epoch_rows > rows // self._epoch_rows:
            self._take("past", model.state_dict())

    def of_past(self, views: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
        """Return what the copies give for views, by whose they are: to be asked before the student learns from them."""
        return {whose: self._copies[whose](views) for whose in self._copies if whose in self._there}

    def targets(self, present: Mapping[str, Tensor], past: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Target]:
        """Return the targets of a batch by name, of those that are there.

        Args:
            present: what the student gives, [B, ...] each.
            past: what `of_past` gave.
        """
        found: dict[str, Target] = {}
        given = {"self": present, **past}
        for name, term in self._of.items():
            whose, _, output = name.partition(".")
            if whose in given:
                values = pick(given[whose], output).detach()
                found[name] = FeatureTarget(values) if term.loss.needs & _WITHOUT_SOFTMAX else DenseTarget(values)
        return found

    def state(self) -> dict[str, Any]:
        """Return the past's weights, where there are some: all else is in the student's own state."""
        return {"past": self._copies["past"].model.state_dict()} if "past" in self._there else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        if "past" in self._copies and state.get("past"):
            self._take("past", state["past"])

    def _take(self, whose: str, weights: Mapping[str, Tensor]) -> None:
        self._copies[whose].model.load_state_dict(weights)
        self._there.add(whose)


class _Copy:
    """A student of the same settings that does not learn."""

    def __init__(self, settings: RunSettings, network: Network, device: torch.device, half: torch.dtype | None) -> None:
        self.model = build_student(settings.student, network, settings.train.seed).to(device).eval()
        self._inputs = StudentInputs(self.model, network.fields)
        self._outputs = StudentOutputs(self.model, settings.student.outputs)
        self._device, self._half = device, half

    @torch.no_grad()
    def __call__(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        half = self._half
        with nullcontext() if half is None else torch.autocast(self._device.type, half):
            return self._inputs.hand(views, self._outputs)
