"""Models side by side: every configuration once a round, each time in a process of its own; medians over the rounds."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bench.figures import Configuration, Measured, Model
from pipeline.onnx_runtime import choose_providers
from schemas.errors import ConfigError

_LONGEST = 3600.0
"""Seconds for one process; there are providers that compile a model for many minutes."""


def configurations(
    models: Sequence[Model], batch_sizes: Sequence[int], threads: Sequence[int], providers: Sequence[str]
) -> list[Configuration]:
    """Return all of them, each once.

    Raises:
        ConfigError: a model does not take such a batch, or ONNX Runtime has no such provider.
    """
    for provider in providers:
        choose_providers(provider)
    for model, size in product(models, batch_sizes):
        if model.inputs.only not in (None, size):
            raise ConfigError(
                f"{model.path}: takes batches of {model.inputs.only} alone, not of {size}: give --batch-size "
                f"{model.inputs.only}, or export it with a dynamic batch"
            )
    every = product(dict.fromkeys(providers), dict.fromkeys(threads), dict.fromkeys(batch_sizes))
    return [Configuration(batch_size, count, provider) for provider, count, batch_size in every]


def measure(
    models: Sequence[Model],
    asked: Sequence[Configuration],
    num_rounds: int,
    seconds: float,
    begun: Callable[[int, Model, Configuration], object],
) -> list[Measured]:
    """Measure every model in every configuration; in the order of these, the models of one side by side.

    Models that are compared run right after one another, and every other round goes backwards, so that what drifts
    meets all alike.

    Args:
        models: to be compared.
        asked: how each is run.
        num_rounds: each time in a fresh process.
        seconds: of timed calls in each.
        begun: is told the round, from 1, and what runs now.

    Raises:
        ConfigError: a model cannot be opened or run so, or ended its process.
    """
    pairs = [(model, each) for each in asked for model in models]
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in range(len(pairs))}
    contents = {id(model): _written(model.inputs.arrays.values()) for model in models}
    for number in range(num_rounds):
        for at in sorted(found, reverse=bool(number % 2)):
            model, each = pairs[at]
            begun(number + 1, model, each)
            found[at].append(_ask(model, each, contents[id(model)], seconds))
    return [Measured(*pair, tuple(found[at])) for at, pair in enumerate(pairs)]


def _written(arrays: Iterable[NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, *arrays)
    return file.getvalue()


def _ask(model: Model, each: Configuration, inputs: bytes, seconds: float) -> dict[str, Any]:
    question = {
        "path": str(model.path),
        "names": list(model.inputs.arrays),
        "batched": sorted(model.inputs.batched),
        "batch_size": each.batch_size,
        "threads": each.threads,
        "provider": each.provider,
        "seconds": seconds,
    }
    path = [os.path.abspath(place) for place in sys.path]  # "" is where we are
    where = f"{model.path}: the process that measured it with a batch of {each.batch_size}"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pipeline.bench.child"],
            input=json.dumps(question).encode() + b"\n" + inputs,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            timeout=_LONGEST + 10 * seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{where} took longer than {error.timeout:.0f} s: try a smaller batch") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ConfigError(f"{where} was ended by {name}: where memory is short, try a smaller batch")
    if done.returncode:
        raise RuntimeError(f"{where} ended with {done.returncode}: {_last_line(done.stderr)}")
    answer: dict[str, Any] = json.loads(_last_line(done.stdout))
    if "error" in answer:
        raise ConfigError(answer["error"])
    return answer


def _last_line(text: bytes) -> str:
    return (text.decode(errors="replace").strip() or "it said nothing").splitlines()[-1]
