"""Images as a student takes them: bytes as floats in [0, 1], then less a mean and over a deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from schemas.errors import ConfigError
from student_trainer.learning.student_inputs import InputField


class Pixels:
    """Run before a student wherever it is called: in a step on its device, in an evaluation, in the exported graph."""

    def __init__(self, inputs: Sequence[InputField], mean: tuple[float, ...], std: tuple[float, ...]):
        """Refuse, as ConfigError, a mean or deviation that does not fit the images among a student's fields."""
        self._fields = [each.name for each in inputs]
        images = [each for each in inputs if len(each.shape) == 3]
        if (mean or std) and not images:
            shapes = ", ".join(str(each.shape) for each in inputs)
            raise ConfigError(f"[student] mean and std are of images [C, H, W], and its samples are {shapes}")
        for name, numbers in (("mean", mean), ("std", std)):
            for each in images:
                if len(numbers) not in (0, 1, each.shape[0]):
                    raise ConfigError(
                        f"[student] {name} has {len(numbers)} numbers, its images {each.shape[0]} channels: give one, "
                        "or one for each"
                    )
        self._bytes = {each.name for each in images if each.dtype == "uint8"}
        self._changed = {each.name for each in images} if mean or std else self._bytes
        self._mean, self._std = mean, std
        # Kept here and not in the student: what it learns, saves and is looked at for has no part in them.
        self._kept: dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor] = {}

    def before(self, student: nn.Module) -> None:
        """Have it run before each call of a student, whose weights keep their names."""
        if self._changed:
            student.register_forward_pre_hook(self._taken, with_kwargs=True)

    def _taken(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # By name or in order, as student_inputs.py has it.
        in_order = tuple(self(name, values) for name, values in zip(self._fields, args, strict=False))
        return in_order, {name: self(name, values) for name, values in kwargs.items()}

    def __call__(self, field: str, values: Tensor) -> Tensor:
        """Return a field's [B, C, H, W] as floats, where it is of images."""
        if field in self._bytes:
            values = values.to(torch.float32) / 255
        if field in self._changed and self._mean:
            values = values - self._by_channel(self._mean, values)
        return values / self._by_channel(self._std, values) if field in self._changed and self._std else values

    def _by_channel(self, numbers: tuple[float, ...], images: Tensor) -> Tensor:
        """[C or 1, 1, 1]; made once for each device, as each is a copy to it that is waited for."""
        if type(images) is not Tensor:  # an export's, which takes no other tensors than its own
            return torch.tensor(numbers, dtype=images.dtype, device=images.device)[:, None, None]
        key = (numbers, images.dtype, images.device)
        if key not in self._kept:
            with torch.inference_mode(False):  # one made in an evaluation is good for training, too
                self._kept[key] = torch.tensor(numbers, dtype=images.dtype, device=images.device)[:, None, None]
        return self._kept[key]
