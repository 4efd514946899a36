"""The moving average of a student's weights, which is evaluated, exported and handed on in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """It begins with the weights after the first step; after step n (from 0) a = k a + (1 - k) w, k at most the decay.

    k = min(decay, (1 + n) / (10 + n)), as TensorFlow's ExponentialMovingAverage has it, so that a short run's average
    is not that of its first steps. Of running statistics the average is taken, too. It is a function of the weights and
    the step, and is held in float32 at least.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._values: dict[str, Tensor] = {}
        self._places: dict[str, tuple[nn.Module, str]] = {}

    @torch.no_grad()
    def update(self, step: int, refused: Tensor) -> None:
        """Take in the weights after a step, unless it was not taken: where `refused`, a scalar, is 1 and not 0."""
        now = self._now()
        if not self._values:
            self._values = {name: _wide(each).clone() for name, each in now.items()}
            return
        share = (1 - min(self._decay, (1 + step) / (10 + step))) * (1 - refused)
        for name, held in self._values.items():
            held.lerp_(_wide(now[name]), share.to(held.dtype))  # one pass over memory, and nothing where the share is 0

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the student its average meanwhile, and then its weights again, to the bit."""
        before = {name: each.clone() for name, each in self._now().items()}
        self.settle()
        try:
            yield
        finally:
            self._put(before)

    def settle(self) -> None:
        """Give the student its average."""
        self._put(self._values)

    def state(self) -> dict[str, Tensor]:
        """Return it by the names of the student's state dict; {} before the first step."""
        return dict(self._values)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`; the student has its weights by then."""
        now = self._now()
        self._values = {name: each.to(now[name].device).clone() for name, each in state.items()}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        now = self._now()
        for name, each in values.items():
            now[name].copy_(each)

    def _now(self) -> dict[str, Tensor]:
        """Return what learns and what runs along."""
        # Found at the first use, when all of it has a shape; looked up each time, as a module may change it.
        self._places = self._places or self._found()
        return {name: getattr(module, own).detach() for name, (module, own) in self._places.items()}

    def _found(self) -> dict[str, tuple[nn.Module, str]]:
        """Return name in the state dict -> the module and its name there."""
        kept = self._model.state_dict().keys()
        found: dict[str, tuple[nn.Module, str]] = {}
        for path, module in self._model.named_modules(remove_duplicate=False):
            own = [name for name, each in module.named_parameters(recurse=False) if each.requires_grad]
            for name, each in module.named_buffers(recurse=False):
                # What is spread out of less memory, or holds infinity as a mask does, is a constant of the network.
                plain = each.is_floating_point() and each.layout is torch.strided and each.is_contiguous()
                if plain and bool(torch.isfinite(each).all()):
                    own.append(name)
            found |= {f"{path}.{name}".lstrip("."): (module, name) for name in own}
        return {name: place for name, place in found.items() if name in kept}


def averaged(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights that a run gives, of a trainee's state: their average where there is one."""
    model, average = state["model"], state.get("average") or {}
    return {name: average[name].to(each.dtype) if name in average else each for name, each in model.items()}


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
