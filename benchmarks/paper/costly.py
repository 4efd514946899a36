"""Teachers that cost what is asked of them: one CNN as an ONNX file, and its twin in PyTorch.

Convolutions and hidden layer are random and the last layer is fitted to the true labels, so that a teacher of any size
is made in seconds and knows what it talks about.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.models import write_cnn
from pipeline.onnx_runtime import open_session

if TYPE_CHECKING:
    from torch import nn

Floats = npt.NDArray[np.float32]

HIDDEN = 256
ENLARGED = (1, 2, 3)
"""Larger images are more memory to go through, which one of the two runtimes minds more than the other."""
WIDTHS = tuple(range(16, 257, 16))
"""Of the convolutions: ONNX Runtime computes 16 channels at a time."""
TRIED = 4
"""Sizes that are measured for a teacher."""
TIMES = 4


@dataclass(frozen=True, slots=True)
class Size:
    """Of a teacher."""

    enlarge: int
    """factor on both sides of the image"""
    width: int
    """channels of the first two convolutions"""

    @property
    def channels(self) -> tuple[int, int, int]:
        """Of the convolutions."""
        return self.width, self.width, self.width * 3 // 2

    @property
    def products(self) -> int:
        """Multiplications in the convolutions of an 8x8 image, which are nearly all."""
        pixels, (first, second, third) = (8 * self.enlarge) ** 2, self.channels
        return 9 * (pixels * first + pixels * first * second + pixels // 4 * second * third)


@dataclass(frozen=True, slots=True)
class Costly:
    """A teacher that was made."""

    path: Path
    size: Size
    seconds: float
    """CPU of one thread for a batch, in ONNX Runtime"""


def make_costly(path: Path, seconds: float, images: Floats, labels: npt.NDArray[np.int64], batch: int) -> Costly:
    """Write the CNN whose forward of a batch takes the CPU time that is nearest to `seconds`.

    Args:
        path: of the ONNX file.
        seconds: of CPU, one thread.
        images: [n, 1, 8, 8], what the last layer is fitted on.
        labels: [n] of them.
        batch: images in a forward.
    """
    sizes = [Size(enlarge, width) for enlarge in ENLARGED for width in WIDTHS]
    taken: dict[Size, float] = {}
    seconds_per_product = 2e-11 * batch
    for _ in range(TRIED):
        left = [size for size in sizes if size not in taken]
        size = min(left, key=lambda one: abs(log(one.products * seconds_per_product / seconds)))
        taken[size] = forward_seconds(write_cnn(path, size.channels, HIDDEN, size.enlarge), images[:batch])
        seconds_per_product = taken[size] / size.products
    best = min(taken, key=lambda one: abs(log(taken[one] / seconds)))
    fit_last_layer(write_cnn(path, best.channels, HIDDEN, best.enlarge), images, labels)
    return Costly(path, best, taken[best])


def forward_seconds(path: Path, images: Floats) -> float:
    """CPU seconds of one thread for all these images at once."""
    session = open_session(path, "cpu", threads=1)
    return cpu_seconds_of(lambda: session.run(None, {"image": images}))


def cpu_seconds_of(work: Callable[[], object]) -> float:
    """CPU seconds of this process: the least of a few times, since others only ever add to it."""
    seconds = []
    for _ in range(TIMES):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def logits_of(path: Path, images: Floats, batch: int) -> Floats:
    """[n, C] what the model gives, computed in batches."""
    session = open_session(path, "cpu", threads=1)
    parts = [session.run(None, {"image": images[at : at + batch]})[0] for at in range(0, len(images), batch)]
    return np.concatenate(parts)


def fit_last_layer(path: Path, images: Floats, labels: npt.NDArray[np.int64]) -> None:
    """Replace the last layer of a model by a logistic regression on what lies before it."""
    from sklearn.linear_model import LogisticRegression

    model = onnx.load(path)
    last = model.graph.node[-1]
    # A node whose output nobody declared is no output yet.
    seen = helper.make_tensor_value_info(last.input[0], TensorProto.FLOAT, ["N", HIDDEN])
    model.graph.output.append(seen)
    whole = path.with_suffix(".hidden.onnx")
    onnx.save(model, str(whole))
    session = open_session(whole, "cpu", threads=1)
    parts = [session.run([seen.name], {"image": images[at : at + 256]})[0] for at in range(0, len(images), 256)]
    whole.unlink()
    hidden = np.concatenate(parts)
    mean, deviation = hidden.mean(axis=0), hidden.std(axis=0) + 1e-3
    fitted = LogisticRegression(C=0.03, max_iter=500).fit((hidden - mean) / deviation, labels)
    weights = fitted.coef_ / deviation
    model.graph.output.pop()
    for name, values in zip(last.input[1:], (weights, fitted.intercept_ - weights @ mean), strict=True):
        (there,) = [each for each in model.graph.initializer if each.name == name]
        there.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(model, str(path))


def in_torch(path: Path) -> nn.Module:
    """Return the same network in PyTorch, with the same weights."""
    import torch
    from torch import nn

    graph = onnx.load(path).graph
    weights = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}

    def with_weights(layer: nn.Module, names: Any) -> nn.Module:
        layer.weight, layer.bias = (nn.Parameter(weights[name], requires_grad=False) for name in names)
        return layer

    layers: list[nn.Module] = []
    for node in graph.node:
        names = [name for name in node.input if name in weights]
        match node.op_type:
            case "Resize":
                layers.append(nn.Upsample(scale_factor=weights[names[0]][-1].item(), mode="nearest"))
            case "Conv":
                following, width = weights[names[0]].shape[:2]
                layers.append(with_weights(nn.Conv2d(width, following, 3, padding=1), names))
            case "Gemm":
                following, width = weights[names[0]].shape
                layers.append(with_weights(nn.Linear(width, following), names))
            case "MaxPool":
                layers.append(nn.MaxPool2d(2))
            case "Relu":
                layers.append(nn.ReLU(inplace=True))
            case "Flatten":
                layers.append(nn.Flatten())
            case other:
                raise ValueError(f"{path}: {other} has no layer here")
    return nn.Sequential(*layers).eval()


def torch_differs_by(path: Path, images: Floats) -> float:
    """Largest difference of the logits that the twin in PyTorch gives for these images.

    Raises:
        ValueError: it is no twin.
    """
    import torch

    with torch.inference_mode():
        given = in_torch(path)(torch.from_numpy(images)).numpy()
    expected = logits_of(path, images, len(images))
    differs = float(np.abs(given - expected).max())
    if not np.allclose(given, expected, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{path}: in PyTorch its logits differ by {differs}")
    return differs
