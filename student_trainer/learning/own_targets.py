"""Targets that students give: deeper exits to shallower ones, the past to the present, peers to each other.

| against | is what | of |
|---|---|---|
| self.OUTPUT | the same forward pass gives there, as a constant | Zhang et al. 2019, "Be Your Own Teacher" |
| average.OUTPUT | the moving average of the weights gives for the views | Tarvainen & Valpola 2017, "Mean Teacher" |
| past.OUTPUT | the weights at the end of the last epoch give for them | Kim et al. 2021, "PS-KD" |
| peers.OUTPUT | each other student gives for them, as a constant | Zhang et al. 2018, "Deep Mutual Learning" |

Average and past are in evaluation mode, without gradients. Before there is an average (step 0) or a past (the first
epoch) their losses are 0. Letters: B rows of a batch.
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
from student_trainer.learning.terms import WITHOUT_SOFTMAX, Term
from student_trainer.run.settings import RunSettings

Given = Mapping[str, Tensor]
"""What a network gives of a batch: output -> [B, ...]."""
Shapes = Mapping[str, tuple[int, ...]]
"""Output of a network -> shape of a row."""


def own_spec(term: Term, name: str, given: Shapes, of_peers: Mapping[str, Shapes]) -> TargetSpec:
    """Return what one of a term's own targets is: of the kind that its loss asks for.

    Args:
        term: one that has an `own`.
        name: of the target, one of its `shares`.
        given: what the student gives.
        of_peers: what each other one gives.

    Raises:
        ConfigError: there is no such output, or the term compares an output with itself.
    """
    what = f"[[losses]] {term.key}: against {name!r}"
    giver, output = _giver(name)
    try:
        shape = pick(of_peers[giver.removeprefix("peers.")] if term.own == "peers" else given, output)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
    if term.own == "self" and pick({each: each for each in given}, term.on) == output:
        raise ConfigError(f"{what} is the output that the loss is on: name another with `on`")
    if term.loss.needs & WITHOUT_SOFTMAX:
        return TargetSpec("features", shape, 0, CodecSpec())
    if term.choose and len(shape) != 1:
        raise ConfigError(
            f'{what}: choose = "{term.choose}" takes one teacher for each sample, but it has several rows of each'
        )
    return TargetSpec("logits", shape, shape[-1] if shape else 0, CodecSpec())


def _giver(name: str) -> tuple[str, str]:
    """Return who gives a target, and which output: of `peers.wide.logits` (`peers.wide`, `logits`)."""
    whose, _, output = name.partition(".")
    if whose != "peers":
        return whose, output
    peer, _, output = output.partition(".")
    return f"peers.{peer}", output


class OwnTargets:
    """The own targets of a student's terms, and the copies of it that some of them need."""

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
            terms: the student's.
            settings, network, device: as it has them.
            half: what autocast computes in; None: no autocast.
            epoch_rows: rows of an epoch: after each step that completes one, the weights become the past.
        """
        own = [term for term in terms if term.own]
        self._of = {
            name: (*_giver(name), bool(term.loss.needs & WITHOUT_SOFTMAX)) for term in own for name in term.shares
        }
        self._epoch_rows, self._batch_size = epoch_rows, settings.train.batch_size
        whose = {term.own for term in own}
        kept: list[str] = [each for each in ("average", "past") if each in whose]
        self._copies = {each: _Copy(settings, network, device, half) for each in kept}
        self._there: set[str] = set()
        """Whose weights the copies have by now."""

    @property
    def copied(self) -> bool:
        """Whether there are copies, which see the views that the student sees."""
        return bool(self._copies)

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

    def of_copies(self, views: Mapping[str, Tensor]) -> dict[str, Given]:
        """Return what the copies give for views, by whose they are: to be asked before the student learns from them."""
        return {whose: self._copies[whose](views) for whose in self._copies if whose in self._there}

    def targets(
        self, present: Given, of_copies: Mapping[str, Given], of_peers: Mapping[str, Given]
    ) -> dict[str, Target]:
        """Return the targets of a batch by name, of those that are there.

        Args:
            present: what the student gives.
            of_copies: what its copies gave.
            of_peers: name of each other student -> what it gives for the same rows.
        """
        given = {"self": present, **of_copies, **{f"peers.{peer}": each for peer, each in of_peers.items()}}
        found: dict[str, Target] = {}
        for name, (giver, output, by_number) in self._of.items():
            if giver in given:
                values = pick(given[giver], output).detach()
                found[name] = FeatureTarget(values) if by_number else DenseTarget(values)
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
