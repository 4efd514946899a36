"""The teacher: a convolutional network of log-mel features in plain PyTorch, trained here and exported to ONNX."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.datasets import open_dataset
from pipeline.datasets.labels import label_budget
from pipeline.views import evaluation_view
from pipeline.views.fetch import Fetcher
from schemas.records import ViewSpec

CHANNELS = (24, 48, 96)
BATCH_SIZE = 32
LEARNING_RATE = 3e-3
PASSES = 3
"""Over the views that were made, each of which is seen so often."""


def network(num_classes: int) -> nn.Module:
    """[B, 1, mels, frames] -> [B, C] logits."""
    layers: list[nn.Module] = [nn.BatchNorm2d(1)]
    width = 1
    for following in CHANNELS:
        layers += [nn.Conv2d(width, following, 3, padding=1, bias=False), nn.BatchNorm2d(following), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        width = following
    return nn.Sequential(
        *layers, nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, num_classes)
    )


def train(
    path: Path, train_uri: str, test_uri: str, view: ViewSpec, test_view: ViewSpec, epochs: int, labelled: int
) -> dict[str, float]:
    """Train on as many labelled recordings, each in `epochs` views, and export to `path`.

    Returns `parameters`, and `accuracy` on so many `recordings` of the test.
    """
    source = Fetcher(open_dataset(train_uri), view)
    # Those that `[data] labelled` of a run takes.
    ids = label_budget([source.dataset.labels(np.arange(source.dataset.num_samples))], labelled, 0)
    seen = [source.fetch(ids, seed) for seed in range(epochs)]
    images = torch.cat([torch.from_numpy(each.inputs["log_mel"]) for each in seen])
    labels = torch.cat([torch.from_numpy(each.labels) for each in seen])
    torch.manual_seed(0)
    model = network(source.dataset.num_classes)
    model(images[:2])  # the lazy layer gets its size
    steps = PASSES * len(images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH_SIZE,))
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    test = Fetcher(open_dataset(test_uri), test_view)
    found = test.fetch(np.arange(test.dataset.num_samples), 0)
    with torch.no_grad():
        answers = model(torch.from_numpy(found.inputs["log_mel"])).argmax(1).numpy()
    # The exporter's remarks on operators of a torchvision that is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    torch.onnx.export(
        model,
        (images[:2],),
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=["log_mel"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "accuracy": float((answers == found.labels).mean()),
        "recordings": len(found.labels),
    }


def in_noise(view: ViewSpec, noise: float) -> ViewSpec:
    """A view as an evaluation has it, but for noise."""
    plain = evaluation_view(view)
    return ViewSpec(plain.name, {**plain.params, "noise": noise}, plain.version)
