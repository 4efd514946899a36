"""Images of six classes, three brightnesses in two tints, and a teacher that knows each by the nearest mean image.

Fed in any other way than it was made for it is wrong without failing: bytes for [0, 1] leave it the brightest, no
normalisation the middle ones, red for blue the other tint, another layout no tint at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
CLASSES = ("dark_blue", "dark_red", "grey_blue", "grey_red", "light_blue", "light_red")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_LEVELS = (0.2, 0.5, 0.8)
_TINT = 0.15
_NOISE = 0.05


def prototypes() -> Any:
    """[6, 3, SIZE, SIZE] float64 in [0, 1]"""
    tints = np.array([[-_TINT, 0.0, _TINT], [_TINT, 0.0, -_TINT]])
    means = np.array([level + tint for level in _LEVELS for tint in tints])
    return np.broadcast_to(means[:, :, None, None], (len(CLASSES), 3, SIZE, SIZE))


def images(labels: Any, seed: int = 0) -> Any:
    """[N, 3, SIZE, SIZE] uint8 of the classes [N]"""
    noise = np.random.default_rng(seed).normal(0, _NOISE, (len(labels), 3, SIZE, SIZE))
    return np.clip(np.rint((prototypes()[labels] + noise) * 255), 0, 255).astype(np.uint8)


def image_folder(folder: Path, per_class: int = 20) -> Path:
    """Write PNG files, one subfolder a class."""
    from PIL import Image

    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    for number, (label, image) in enumerate(zip(labels, images(labels), strict=True)):
        file = folder / CLASSES[label] / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(file)
    return folder


class Colours:
    """`__len__` and `__getitem__`, with labels and without a class count."""

    def __init__(self, count: int, layout: str, labelled: bool, only: int | None, rare: int | None, dtype: str) -> None:
        classes = np.arange(count) % len(CLASSES) if only is None else np.full(count, only)
        if rare is not None:
            classes[::rare] = 0
        found = images(classes).astype(dtype)
        self._images = found if layout == "chw" else np.ascontiguousarray(found.transpose(0, 2, 3, 1))
        if labelled:
            self.labels = classes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        return {"image": self._images[sample_id]}


def colours(
    count: str = "120", layout: str = "chw", labelled: str = "1", only: str = "", rare: str = "", dtype: str = "uint8"
) -> Colours:
    """`layout` is chw or hwc; `only` is the one class of all of them, but that each `rare`-th is of the first."""
    one, other = int(only) if only else None, int(rare) if rare else None
    return Colours(int(count), layout, labelled == "1", one, other, dtype)


def nearest_colour(
    path: Path,
    *,
    top: float = 1.0,
    normalised: bool = False,
    nhwc: bool = False,
    bgr: bool = False,
    open_shape: bool = False,
    batch: int | None = None,
) -> Path:
    """Write the teacher.

    Args:
        top: it takes values in [0, `top`].
        normalised: less ImageNet's mean and over its deviation.
        bgr: it takes blue first.
        open_shape: the file says nothing of the samples' shape.
        batch: fixed rows of each call; None: any.
    """
    wanted = prototypes() * top
    if normalised:
        wanted = (wanted - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(IMAGENET_STD, (3, 1, 1))
    wanted = wanted[:, ::-1] if bgr else wanted
    wanted = wanted.transpose(0, 2, 3, 1) if nhwc else wanted
    flat = wanted.reshape(len(CLASSES), -1) / top
    sharp = 100.0 / flat.shape[1]
    weights = {
        "w": (sharp * flat.T / top).astype(np.float32),
        "b": (-0.5 * sharp * (flat**2).sum(axis=1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["inner"]),
        helper.make_node("Add", ["inner", "b"], ["y"]),
    ]
    shape = ["d1", "d2", "d3"] if open_shape else list(wanted.shape[1:])
    rows = batch or "N"
    graph = helper.make_graph(
        nodes,
        "nearest_colour",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, len(CLASSES)])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, str(path))
    return path


class _TintBeside:
    """Images that show the level of their class alone, and beside them its tint as numbers that are no bytes."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count) % len(CLASSES)
        shown = np.random.default_rng(1).integers(0, 2, count)
        self._images = images(self.labels // 2 * 2 + shown)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        return {"image": self._images[sample_id], "tint": 6 * np.eye(2, dtype=np.float32)[self.labels[sample_id] % 2]}


def tint_beside(count: str = "200") -> _TintBeside:
    """Samples of two fields, one of which is no image."""
    return _TintBeside(int(count))


def level_and_tint(path: Path, weight: float) -> Path:
    """Write a teacher that takes the level of `image` in [0, 255], and the tint of `tint` by a weight."""
    nearest_colour(path, top=255.0)
    model = onnx.load(str(path))
    graph = model.graph
    graph.node[-1].output[0] = "of_image"
    graph.initializer.append(numpy_helper.from_array(weight * np.tile(np.eye(2, dtype=np.float32), 3), "weights"))
    graph.node.append(helper.make_node("MatMul", ["tint", "weights"], ["of_tint"]))
    graph.node.append(helper.make_node("Add", ["of_image", "of_tint"], ["y"]))
    graph.input.append(helper.make_tensor_value_info("tint", TensorProto.FLOAT, ["N", 2]))
    graph.input[0].name = "image"
    graph.node[0].input[0] = "image"
    onnx.save(model, str(path))
    return path
