"""The teacher, a residual network in plain PyTorch, trained here and exported to ONNX; and the student, depthwise."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.datasets import open_dataset
from pipeline.datasets.labels import label_budget
from pipeline.onnx_runtime import open_session
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.records import ViewSpec
from student_trainer.evaluate import evaluate

WIDTHS = (24, 48, 96)
"""Channels of the teacher's three stages, at 1/2, 1/4 and 1/8 of the picture's side."""
LEARNING_RATE = 3e-3
THREADS = 1
"""Of the teacher's training; another number gives other bits."""


class Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016): [B, I, H, W] -> [B, O, H / stride, W / stride]."""

    def __init__(self, width: int, following: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            *_convolution(width, following, 3, stride), nn.ReLU(), *_convolution(following, following, 3)
        )
        same = width == following and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(width, following, 1, stride))

    def forward(self, images: Tensor) -> Tensor:
        """[B, I, H, W] float32"""
        return torch.relu(self.inner(images) + self.shortcut(images))


class Teacher(nn.Module):
    """[B, 3, H, W] in [0, 1] -> logits [B, C], maps [B, 96, H / 8, W / 8] of its last stage, and their mean [B, 96]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        first = WIDTHS[0]
        blocks = [Residual(width, following, 2) for width, following in pairwise(WIDTHS)]
        self.stages = nn.Sequential(*_convolution(3, first, 3, 2), nn.ReLU(), Residual(first, first, 1), *blocks)
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] float32"""
        maps = self.stages(images)
        pooled = maps.mean(dim=(2, 3))
        return self.head(pooled), maps, pooled


def depthwise(input_shape: tuple[int, ...], num_classes: int, channels: Sequence[int] = (16, 32, 64)) -> nn.Module:
    """The student: depthwise separable convolutions (Howard et al. 2017), whose `maps` are 1/8 of the picture's side.

    What a run file names. The stem and one of each pair of blocks halve the side.
    """
    layers: list[nn.Module] = [*_convolution(input_shape[0], channels[0], 3, 2), nn.ReLU()]
    for width, following in pairwise(channels):
        layers += [*_separable(width, following, 2), *_separable(following, following, 1)]
    parts = [
        ("maps", nn.Sequential(*layers)),
        ("pooled", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
        ("head", nn.Linear(channels[-1], num_classes)),
    ]
    return nn.Sequential(OrderedDict(parts))


def _convolution(width: int, following: int, side: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    kernel = nn.Conv2d(width, following, side, stride, padding=side // 2, groups=groups, bias=False)
    return [kernel, nn.BatchNorm2d(following)]


def _separable(width: int, following: int, stride: int) -> list[nn.Module]:
    """Each channel by itself, then all of them at each place."""
    apart = _convolution(width, width, 3, stride, groups=width)
    return [*apart, nn.ReLU(), *_convolution(width, following, 1), nn.ReLU()]


def train(path: Path, uri: str, view: ViewSpec, steps: int, batch_size: int, labelled: int) -> int:
    """Train the teacher on so many labelled pictures of a dataset, as the view shows them, and export it to `path`.

    Returns how many parameters it has.
    """
    torch.set_num_threads(THREADS)
    source = Fetcher(open_dataset(uri), view)
    # Those that `[data] labelled` of a run takes.
    ids = label_budget([source.dataset.labels(np.arange(source.dataset.num_samples))], labelled, 0)
    torch.manual_seed(0)
    model = Teacher(source.dataset.num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    left = torch.empty(0, dtype=torch.int64)
    seed = 0
    for _ in range(steps):
        if len(left) < batch_size:
            # A pass, in views of its own.
            seen, left, seed = source.fetch(ids, seed), torch.randperm(len(ids)), seed + 1
        batch, left = left[:batch_size], left[batch_size:]
        images = torch.from_numpy(seen.inputs["image"])[batch].float() / 255
        loss = nn.functional.cross_entropy(model(images)[0], torch.from_numpy(seen.labels)[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    # The exporter's remarks on operators of a torchvision that is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    torch.onnx.export(
        model,
        (images[:2],),
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=["image"],
        output_names=["logits", "maps", "pooled"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    return sum(each.numel() for each in model.parameters())


def judge(path: Path, uri: str) -> dict[str, float]:
    """`accuracy` and `nll` of an ONNX file on all of a dataset; one that takes floats gets bytes / 255."""
    session = open_session(path, threads=1)
    scale = 255 if session.get_inputs()[0].type == "tensor(float)" else 1

    def logits(inputs: dict[str, np.ndarray]) -> np.ndarray:
        image = inputs["image"]
        fed = image.astype(np.float32) / scale if scale > 1 else image
        return session.run(["logits"], {"image": fed})[0]

    found = evaluate(logits, Fetcher(open_dataset(uri), view_spec("none", {})), 500)
    return {key: found[key] for key in ("accuracy", "nll")}
