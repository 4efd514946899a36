"""Several teachers in one loss: the mean of what they give as one target, or of each sample the best one's alone.

Letters: B rows of a batch, C classes, T temperature, N teachers. Which teacher was there first is no matter anywhere:
shares are the run file's, and of two that are as good the one that it names first is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from schemas.errors import ConfigError
from student_trainer.learning.losses import Loss
from student_trainer.learning.part_target import PartTarget
from student_trainer.learning.positions import PositionTarget
from student_trainer.learning.targets import DenseTarget, Target, TargetSpec, TopKTarget
from student_trainer.run.loss_settings import LossSettings


def refuse_ensemble(
    what: str, entry: LossSettings, loss: Loss, shares: Mapping[str, float], specs: Mapping[str, TargetSpec]
) -> None:
    """Raise ConfigError where `mean` or `choose` of a loss makes no sense of its targets; the text begins with `what`.

    Args:
        what: the loss, as errors name it.
        entry: of the run file.
        loss: what it names.
        shares: of its targets.
        specs: what these are.
    """
    key = "mean" if entry.mean else "choose"
    asked = f'{key} = "{entry.mean or entry.choose}"'
    for name, spec in specs.items():
        if not spec.num_classes:
            raise ConfigError(f"{what}: {asked} is of classes that exclude one another, but {name} holds {spec.kind}")
        if spec.classes:
            raise ConfigError(
                f"{what}: {asked} compares teachers on the same classes, but {name} has a class map; leave `{key}` out"
            )
        if entry.mean and not spec.codec.keeps_all:
            raise ConfigError(
                f"{what}: {asked} needs all classes of each teacher, but the codec of {name} keeps only some, and not "
                f"the same of each; store it as float32 or float16, or leave `{key}` out"
            )
        if entry.choose and (spec.positions or len(spec.shape) != 1):
            raise ConfigError(f"{what}: {asked} takes one teacher for each sample, but {name} has several rows of each")
        if entry.choose and spec.codec.draws:
            raise ConfigError(f"{what}: {asked} needs probabilities of classes, but {name} holds draws of them")
        if entry.choose and not spec.codec.serves(1.0):
            raise ConfigError(
                f"{what}: {asked} needs probabilities at temperature 1, but the codec of {name}, {spec.codec}, has no "
                "tail of that"
            )
    if entry.choose and loss.batchwise:
        raise ConfigError(f"{what}: {asked} takes one teacher for each sample, and this loss compares the batch's rows")
    if entry.mean == "probabilities" and "logits" in loss.needs:
        raise ConfigError(f'{what}: a mean of probabilities has no true logits; say mean = "logits"')
    if len({(spec.positions, spec.places) for spec in specs.values()}) > 1:
        raise ConfigError(f"{what}: {asked} compares teachers on the same positions; leave `{key}` out")
    if entry.choose and len(set(shares.values())) > 1:
        raise ConfigError(f"{what}: {asked} takes one teacher for each sample: leave out the weights in [[teachers]]")


def shares_of_rows(targets: Sequence[Target], shares: Sequence[float], num_rows: int) -> list[Tensor | float]:
    """Return the share of each target, such that those that there are of a row are 1 together.

    Args:
        targets: those of a batch of B rows; some may be of some rows alone.
        shares: of each, relative to the others'.
        num_rows: B.

    Returns:
        One number each, or [B] float32 each where a target is of some rows alone: 0 where there is none.
    """
    if not any(isinstance(target, PartTarget) for target in targets):
        return [share / sum(shares) for share in shares]
    parts: list[Tensor] = []
    for target, share in zip(targets, shares, strict=True):
        there = target.present() if isinstance(target, PartTarget) else None
        parts.append(_like(targets, num_rows) * share if there is None else there * share)
    whole = torch.stack(parts).sum(dim=0)
    return [(part / torch.where(whole > 0, whole, 1.0)).float() for part in parts]


def _like(targets: Sequence[Target], num_rows: int) -> Tensor:
    """[B] float64 of ones, where the parts are."""
    device = next(target.at.device for target in targets if isinstance(target, PartTarget))
    return torch.ones(num_rows, dtype=torch.float64, device=device)


def mean_target(targets: Sequence[Target], shares: Sequence[float], mean: str, temperature: float) -> Target:
    """Return the one target that several teachers' are in the mean: of all classes, in float32.

    Where some are of some rows alone, it is of each row the mean of those that there are, and of the rows that have
    one.

    Args:
        targets: of the same rows.
        shares: of each, 1 together.
        mean: `logits`: of the logits (so the geometric mean of the probabilities); `probabilities`: at T.
        temperature: T of the loss.
    """
    if any(isinstance(target, PartTarget) for target in targets):
        return _mean_of_parts(targets, shares, mean, temperature)
    first = targets[0]
    if isinstance(first, PositionTarget):  # of the same field, and a view is pure, so of the same positions
        rows = [target.rows for target in targets if isinstance(target, PositionTarget)]
        return replace(first, rows=mean_target(rows, shares, mean, temperature))
    if mean == "logits":
        joined = torch.zeros_like(first.logits)
        for target, share in zip(targets, shares, strict=True):
            joined = joined + share * target.logits
        return DenseTarget(joined)
    # In log space: of a confident teacher most probabilities are 0 in float32.
    parts = [
        math.log(share) + functional.log_softmax(target.logits / temperature, dim=-1)
        for target, share in zip(targets, shares, strict=True)
    ]
    return DenseTarget(temperature * torch.logsumexp(torch.stack(parts), dim=0))


def _mean_of_parts(targets: Sequence[Target], shares: Sequence[float], mean: str, temperature: float) -> Target:
    num_rows = targets[0].shape[0]
    of_rows = [torch.as_tensor(share) for share in shares_of_rows(targets, shares, num_rows)]
    there = torch.stack(of_rows).sum(dim=0).nonzero().flatten()
    sums: list[Tensor] = []
    for target, share in zip(targets, of_rows, strict=True):
        # Spread over all rows; what stands where there is none has a share of 0.
        logits = target.logits
        if mean == "logits":
            spread = _spread(target, logits, 0.0) * share.view(-1, *[1] * (logits.ndim - 1))
        else:
            spread = _spread(target, functional.log_softmax(logits / temperature, dim=-1), -math.inf)
            spread = spread + share.log().view(-1, *[1] * (logits.ndim - 1))
        sums.append(spread.index_select(0, there))
    stacked = torch.stack(sums)
    joined = stacked.sum(dim=0) if mean == "logits" else temperature * torch.logsumexp(stacked, dim=0)
    return PartTarget(DenseTarget(joined), there, num_rows)


def _spread(target: Target, values: Tensor, fill: float) -> Tensor:
    """[B, ...] of what a target has of its rows; `fill` where it is not of one."""
    if not isinstance(target, PartTarget):
        return values
    whole = torch.full((target.num_rows, *values.shape[1:]), fill, dtype=values.dtype, device=values.device)
    return whole.index_copy(0, target.at, values)


def chosen_teacher(targets: Sequence[Target], labels: Tensor, choose: str) -> Tensor:
    """Return [B] int64: which of the targets is taken for each row, one of those that there are of it.

    Args:
        targets: of one row of classes for each sample, or for some.
        labels: [B] int64, -1 = none is shown.
        choose: `confidence`: who gives its likeliest class the most at T = 1; `label`: who gives the label the most,
            and where none is shown, or no teacher's codec kept it, as by confidence.
    """
    confidence = torch.stack([_likeliest(target) for target in targets])
    if choose == "confidence":
        return confidence.argmax(dim=0)
    of_label = torch.stack([_of_label(target, labels) for target in targets])
    known = (labels >= 0) & torch.isfinite(of_label).any(dim=0)
    return torch.where(known, of_label, confidence).argmax(dim=0)


def _likeliest(target: Target) -> Tensor:
    """[B] log-probability of the likeliest class at T = 1; -inf where there is no target."""
    if isinstance(target, PartTarget):
        return _spread(target, _likeliest(target.rows), -math.inf)
    if isinstance(target, TopKTarget):
        return target.log_probs_at(1.0)[:, 0]
    return functional.log_softmax(target.logits, dim=1).amax(dim=1)


def _of_label(target: Target, labels: Tensor) -> Tensor:
    """[B] log-probability of the label at T = 1; -inf where the codec did not keep it; anything where there is none."""
    if isinstance(target, PartTarget):
        return _spread(target, _of_label(target.rows, target.labels_of(labels)), -math.inf)
    if isinstance(target, TopKTarget):
        kept = target.indices == labels[:, None]
        return torch.where(kept, target.log_probs_at(1.0), -math.inf).amax(dim=1)
    return functional.log_softmax(target.logits, dim=1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
