"""Optimizers, built by name; fused, since a small student's step costs less than a loop over its tensors.

And since only a fused one heeds `found_inf`, by which a step that is not finite leaves no trace (guard.py).
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pipeline.user_code import said
from schemas.errors import ConfigError
from schemas.names import did_you_mean
from student_trainer.learning.students import check_parameters
from student_trainer.run.choices import choose
from student_trainer.run.optimizer_settings import GroupSettings, OptimizerSettings


def sgd(
    parameters: list[nn.Parameter], lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
) -> torch.optim.Optimizer:
    """Stochastic gradient descent; weight decay is added to the gradient (L2)."""
    return _torchs(torch.optim.SGD)(parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def adamw(
    parameters: list[nn.Parameter],
    lr: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay: weights shrink by lr * weight_decay a step."""
    return torch.optim.AdamW(
        parameters, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), eps=eps, fused=True
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}
_TORCHS = "torch.optim."


def _find(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return what is called with the parameters, the rate and all else.

    Raises:
        ConfigError: nothing of that name.
    """
    if name.startswith(_TORCHS) and ":" not in name:
        name = ":".join(name.rsplit(".", 1))
    found = choose("[optimizer]", "optimizer", name, OPTIMIZERS, lambda found: found)
    its_own = inspect.isclass(found) and f"{found.__module__}.".startswith(_TORCHS)
    return _torchs(found) if its_own else found


def _torchs(optimizer: Callable[..., torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return one of PyTorch's own, fused where it can be and nothing else is asked for; it is tried on dense zeros."""

    @functools.wraps(optimizer)
    def made(parameters: list[nn.Parameter], lr: float, **params: Any) -> torch.optim.Optimizer:
        # A fused SGD whose buffers are there leaves its first gradient as it is; the others dampen all but the first.
        asked = {"fused", "foreach", "differentiable"} & params.keys() or params.get("dampening")
        if not asked and "fused" in inspect.signature(optimizer).parameters:
            params["fused"] = True
        tried = nn.Parameter(torch.zeros(2, 2))
        tried.grad = torch.zeros_like(tried)
        rehearsed = optimizer([tried], lr=lr, **params)
        if not _asks_twice(rehearsed):
            rehearsed.step()
        found = optimizer(parameters, lr=lr, **params)
        if isinstance(found, torch.optim.SGD) and params.get("fused") and params.get("momentum"):
            # The fused kernel allocates these at the first step, and leaves them unset where that step is skipped.
            for each in _parameters(found):
                found.state[each]["momentum_buffer"] = torch.zeros_like(each)
        return found

    return made


def _asks_twice(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step has to be given a function that evaluates the loss again."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]


def build_optimizer(
    settings: OptimizerSettings, model: nn.Module, projections: Mapping[str, nn.Module] | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer of all parameters that learn.

    Args:
        settings: the run's.
        model: the student.
        projections: key of a loss -> its layer; the parameters are called `projections.KEY.weight`.

    Returns:
        Its groups are those of the settings, in their order, and then all others, where any are left, and what a user's
        optimizer makes of each; each `lr` is the peak of that group's.

    Raises:
        ConfigError: no such optimizer, or a parameter that it does not take; a pattern that matches nothing; or it
            leaves out what is to learn.
    """
    what = f"[optimizer] {settings.name}"
    function = _find(settings.name)
    check_parameters(function, 2, settings.params, what, _keys(OptimizerSettings))
    layers = {f"projections.{key}.": layer for key, layer in (projections or {}).items()}
    learned = {
        f"{prefix}{name}": each
        for prefix, module in {"": model, **layers}.items()
        for name, each in module.named_parameters()
        if each.requires_grad
    }
    *own, rest = _shared_out(settings.groups, learned)

    def made(what: str, parameters: list[nn.Parameter], lr: float, params: dict[str, Any]) -> torch.optim.Optimizer:
        try:
            optimizer = function(parameters, lr=lr, **params)
        except Exception as error:  # one may be of the user's own
            raise ConfigError(f"{what}: {said(error)}") from error
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ConfigError(f"{what} gave a {type(optimizer).__name__}, not a torch.optim.Optimizer")
        return optimizer

    # Each is made alone: an optimizer checks the ranges of what it is given, but not of what groups say, and one of the
    # user's own may make several groups of its parameters.
    alone = []
    for number, (group, parameters) in enumerate(zip(settings.groups, own, strict=True)):
        where = f"[[optimizer.groups]] {number}"
        check_parameters(function, 2, group.params, where, _keys(GroupSettings))
        alone.append(made(where, parameters, group.lr or settings.lr, settings.params | group.params))
    if rest or not alone:
        alone.append(made(what, rest, settings.lr, settings.params))
    optimizer, *others = alone
    for other in others:
        try:
            for each in other.param_groups:
                optimizer.add_param_group(each)
        except Exception as error:
            raise ConfigError(f"{what} takes no [[optimizer.groups]]: {said(error)}") from error
        optimizer.state.update(other.state)
    _refuse_lost(what, optimizer, learned)
    if _asks_twice(optimizer):
        raise ConfigError(f"{what} evaluates the loss several times a step, which a run does once; take another")
    return optimizer


def _refuse_lost(what: str, optimizer: torch.optim.Optimizer, learned: Mapping[str, nn.Parameter]) -> None:
    """Raise ConfigError unless an optimizer has each parameter once."""
    counts = Counter(id(each) for each in _parameters(optimizer))
    for name, each in learned.items():
        if counts[id(each)] != 1:
            there = "leaves out" if not counts[id(each)] else f"has {counts[id(each)]} times"
            raise ConfigError(
                f"{what} {there} {name}: an optimizer has each of its parameters once; what is not to learn is said by "
                "[student] frozen"
            )


def _shared_out(groups: Sequence[GroupSettings], learned: Mapping[str, nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the parameters of each group, and at last those of none."""
    left, shares = dict(learned), []
    for number, group in enumerate(groups):
        what = f"[[optimizer.groups]] {number}: match"
        for pattern in group.match:
            if not any(fnmatchcase(name, pattern) for name in learned):
                raise ConfigError(f"{what} {pattern!r} is no name of what learns: {did_you_mean(pattern, learned)}")
        taken = [name for name in left if any(fnmatchcase(name, pattern) for pattern in group.match)]
        if not taken:
            raise ConfigError(f"{what}: groups before it have all of its parameters: put it before them")
        shares.append([left.pop(name) for name in taken])
    return [*shares, list(left.values())]


def _keys(section: type) -> set[str]:
    return {each.name for each in fields(section)} - {"params"}


def heeds_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step leaves everything alone where its `found_inf` is 1, as a fused one does."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
