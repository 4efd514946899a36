"""Images as a student takes them: bytes as floats in [0, 1], then less a mean and over a deviation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.errors import ConfigError


class Pixels:
    """Run before a student wherever it is called: in a step on its device, in an evaluation, in the exported graph."""

    def __init__(self, input_shape: tuple[int, ...], dtype: str, mean: tuple[float, ...], std: tuple[float, ...]):
        is_image = len(input_shape) == 3
        if (mean or std) and not is_image:
            raise ConfigError(f"[student] mean and std are of images [C, H, W], and its samples are {input_shape}")
        for name, numbers in (("mean", mean), ("std", std)):
            if len(numbers) not in (0, 1, input_shape[0]):
                raise ConfigError(
                    f"[student] {name} has {len(numbers)} numbers, its images {input_shape[0]} channels: give one, or "
                    "one for each"
                )
        self._bytes = is_image and dtype == "uint8"
        self._mean, self._std = mean, std
        # Kept here and not in the student: what it learns, saves and is looked at for has no part in them.
        self._kept: dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor] = {}

    @property
    def needed(self) -> bool:
        """Whether anything changes."""
        return self._bytes or bool(self._mean or self._std)

    def before(self, student: nn.Module) -> None:
        """Have it run before each call of a student, whose weights keep their names."""
        if self.needed:
            student.register_forward_pre_hook(lambda module, inputs: (self(inputs[0]),))

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> the same as floats."""
        if self._bytes:
            images = images.to(torch.float32) / 255
        if self._mean:
            images = images - self._by_channel(self._mean, images)
        return images / self._by_channel(self._std, images) if self._std else images

    def _by_channel(self, numbers: tuple[float, ...], images: Tensor) -> Tensor:
        """[C or 1, 1, 1]; made once for each device, as each is a copy to it that is waited for."""
        if type(images) is not Tensor:  # an export's, which takes no other tensors than its own
            return torch.tensor(numbers, dtype=images.dtype, device=images.device)[:, None, None]
        key = (numbers, images.dtype, images.device)
        if key not in self._kept:
            with torch.inference_mode(False):  # one made in an evaluation is good for training, too
                self._kept[key] = torch.tensor(numbers, dtype=images.dtype, device=images.device)[:, None, None]
        return self._kept[key]
