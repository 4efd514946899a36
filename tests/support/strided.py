"""Networks that stride over the frames of a log-mel, as recognisers with CTC do: an output shorter than the input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

STRIDE, CLASSES = 4, 5


def strided_model(path: Path, mels: int, frames: int) -> Path:
    """Write `log_mel` [N, 1, mels, frames] -> `letters` [N, ceil(frames / 4), 5]: a convolution over 4 frames each."""
    places = -(-frames // STRIDE)
    weight = np.random.default_rng(2).normal(0, 0.1, (CLASSES, 1, mels, STRIDE)).astype(np.float32)
    nodes = [
        helper.make_node(
            "Conv", ["log_mel", "weight"], ["found"], strides=[1, STRIDE], pads=[0, 0, 0, places * STRIDE - frames]
        ),
        helper.make_node("Squeeze", ["found", "of_mels"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["letters"], perm=[0, 2, 1]),
    ]
    values = {"weight": weight, "of_mels": np.array([2], np.int64)}
    graph = helper.make_graph(
        nodes,
        "strided",
        [helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["N", 1, mels, frames])],
        [helper.make_tensor_value_info("letters", TensorProto.FLOAT, ["N", places, CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


class Strided(nn.Module):
    """[B, 1, mels, frames] -> [B, ceil(frames / 4), 5]"""

    def __init__(self, mels: int, frames: int) -> None:
        super().__init__()
        self.found = nn.Conv2d(1, CLASSES, (mels, STRIDE), STRIDE)
        self.more = -frames % STRIDE

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(log_mel, (0, self.more))
        return self.found(padded)[:, :, 0].transpose(1, 2)


def student(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Found by import path."""
    return Strided(input_shape[1], input_shape[2])
