"""Parts of a student that do not learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from schemas.errors import ConfigError
from schemas.names import did_you_mean


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Let modules or parameters of a student, by their names, have no gradient.

    The batch norms of a frozen module compute as in an evaluation: by a batch's own statistics they would give other
    values than they were trained to, and the running ones, which are in every checkpoint, would go on changing.

    Raises:
        ConfigError: there is no such module or parameter, or nothing is left to learn.
    """
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if name in modules:
            modules[name].requires_grad_(False)
            for each in modules[name].modules():
                if isinstance(each, _NormBase) and each.track_running_stats:
                    # Before each of its calls: whoever sets the student to training mode sets all of it.
                    each.register_forward_pre_hook(_evaluating)
        elif name in parameters:
            parameters[name].requires_grad_(False)
        else:
            known = [*modules, *parameters]
            raise ConfigError(f"[student] frozen: there is no {name!r} in the network: {did_you_mean(name, known)}")
    if names and not any(each.requires_grad for each in parameters.values()):
        raise ConfigError("[student] frozen: nothing is left to learn; leave a part of the network out")


def _evaluating(module: nn.Module, inputs: Any) -> None:
    module.eval()
