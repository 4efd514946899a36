"""Keeps a student from learning from a loss or a gradient that is not finite, without waiting for its device.

A fused optimizer leaves weights and state alone where its `found_inf` is 1: that is how a GradScaler skips a step. Here
the flag is ours and stays up, so that whoever looks at it steps later still finds the weights of before.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def looks_at_once(device: torch.device) -> bool:
    """Whether a look at a flag costs nothing: on the CPU there is nothing to wait for."""
    return device.type == "cpu"


class Guard:
    """Use around a step: `begin`, the forward and backward pass, `check`, the optimizer's step, `undo`."""

    def __init__(self, model: nn.Module, device: torch.device, skips: bool) -> None:
        """`skips`: a step that is not finite is skipped alone, as under a GradScaler; else all steps after it, too."""
        self.refused = torch.zeros((), device=device)
        """Scalar float32 on the device: 1 where the step is not to be taken."""
        self._one = torch.ones((), device=device)
        self._skips = skips
        self._asks = looks_at_once(device)
        self._buffers = _Buffers(model)
        self._before: list[Tensor] = []

    def begin(self) -> None:
        """Take note of what the forward pass may change."""
        self._before = self._buffers.copy()

    def check(self, loss: Tensor, gradients: Iterable[Tensor]) -> None:
        """Raise the flag where the loss, a gradient or a running statistic holds NaN or infinity."""
        if self._skips:
            self.refused.zero_()
        # What a GradScaler calls: one kernel for all tensors. It multiplies them, too, here by 1.
        watched = [loss.detach(), *gradients, *self.statistics()]
        torch._amp_foreach_non_finite_check_and_unscale_(watched, self.refused, self._one)

    def statistics(self) -> list[Tensor]:
        """Return the buffers that are looked at: those that were finite when the network was made."""
        return self._buffers.watched()

    def give_up(self) -> None:
        """Put the buffers back: the step was cut short, and nothing of it is to be kept."""
        if self._before:
            self._buffers.restore(self._before, torch.ones_like(self.refused))
        self._before = []

    def undo(self) -> None:
        """Where the flag is up, put the buffers back: a batch norm's statistics saw the batch before its loss did."""
        if self._before and (not self._asks or self.refused):
            self._buffers.restore(self._before, self.refused)
        self._before = []


class _Buffers:
    """The buffers that a checkpoint holds, one flat tensor for each dtype: a few kernels, however many there are."""

    def __init__(self, model: nn.Module) -> None:
        kept = model.state_dict().keys()
        self._places: dict[torch.dtype, list[tuple[nn.Module, str]]] = {}
        self._watched: list[tuple[nn.Module, str]] = []
        for path, module in model.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                # What is sparse, or spread out of less memory, is a constant of the network and no running statistic.
                plain = buffer.layout is torch.strided and buffer.is_contiguous()
                if plain and f"{path}.{name}".lstrip(".") in kept:
                    self._places.setdefault(buffer.dtype, []).append((module, name))
                    # A constant of the network, such as a mask, may hold infinity from the start.
                    if buffer.dtype == torch.float32 and bool(torch.isfinite(buffer).all()):
                        self._watched.append((module, name))

    def watched(self) -> list[Tensor]:
        """Return those of float32 that were finite at the start, and have to stay so: the running statistics."""
        return [getattr(module, name) for module, name in self._watched]

    def copy(self) -> list[Tensor]:
        """Return their values, which later changes leave alone."""
        return [torch.cat([buffer.reshape(-1) for buffer in group]) for group in self._groups()]

    def restore(self, values: list[Tensor], where: Tensor) -> None:
        """Set them to what `copy` gave where a scalar is not 0."""
        for group, before in zip(self._groups(), values, strict=True):
            now = torch.cat([buffer.reshape(-1) for buffer in group])
            parts = torch.split(torch.where(where > 0, before, now), [buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view_as(buffer) for part, buffer in zip(parts, group, strict=True)])

    def _groups(self) -> list[list[Tensor]]:
        # Looked up each time: a module may put another tensor in a buffer's place.
        return [[getattr(module, name) for module, name in places] for places in self._places.values()]
