"""Optimizers, built by name; fused, since a small student's step costs less than a loop over its tensors.

And since only a fused one heeds `found_inf`, by which a step that is not finite leaves no trace (guard.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.user_code import said
from schemas.errors import ConfigError
from student_trainer.learning.students import check_parameters
from student_trainer.run.choices import choose
from student_trainer.run.settings import OptimizerSettings

Parameters = list[nn.Parameter]


def sgd(
    parameters: Parameters, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
) -> torch.optim.Optimizer:
    """Stochastic gradient descent; weight decay is added to the gradient (L2)."""
    optimizer = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True
    )
    if momentum:
        # The fused kernel allocates these at the first step, and leaves them unset where that step is skipped.
        for each in parameters:
            optimizer.state[each]["momentum_buffer"] = torch.zeros_like(each)
    return optimizer


def adamw(
    parameters: Parameters,
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


def build_optimizer(settings: OptimizerSettings, *models: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of all parameters that learn.

    Raises:
        ConfigError: no such optimizer, or a parameter that it does not take.
    """
    what = f"[optimizer] {settings.name}"
    function = choose("[optimizer]", "optimizer", settings.name, OPTIMIZERS, lambda found: found)
    check_parameters(function, 2, settings.params, what)
    params: dict[str, Any] = settings.params
    try:
        parameters = [each for model in models for each in model.parameters() if each.requires_grad]
        optimizer = function(parameters, lr=settings.lr, **params)
    except Exception as error:  # one may be of the user's own
        raise ConfigError(f"{what}: {said(error)}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"{what} gave a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(f"{what} evaluates the loss several times a step, which a run does once; take another")
    return optimizer


def heeds_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step leaves everything alone where its `found_inf` is 1, as a fused one does."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
