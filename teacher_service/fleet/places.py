"""Where the workers of a fleet run: each has a GPU of its own, or its own cores."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pipeline.onnx_runtime import choose_providers
from schemas.errors import ConfigError

MOST_BY_DEFAULT = 8
"""Workers on CPUs, where nobody said how many."""
_ON_GPU = ("auto", "cuda", "tensorrt")
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")


@dataclass(frozen=True, slots=True)
class Place:
    """What one worker has to itself."""

    name: str
    """for people"""
    threads: int
    """of one inference; 0: as many as there are cores"""
    cores: tuple[int, ...] = ()
    """none: all"""
    environment: Mapping[str, str] = field(default_factory=dict)
    """on top of ours"""


def find_places(most: int | None, provider: str, gpus: Sequence[str], threads: int) -> list[Place]:
    """Find a place for each of `most` workers (None: for as many as make sense).

    Args:
        most: workers that there may be at once.
        provider: as `teach --provider` takes it.
        gpus: which GPUs to use, as CUDA_VISIBLE_DEVICES names them; empty: all that there are.
        threads: of one inference, if not a worker's share of the cores; 0: the share.

    Raises:
        ConfigError: more workers than GPUs, GPUs that the provider does not use, or an unknown provider.
    """
    if provider not in _ON_GPU or "CUDAExecutionProvider" not in choose_providers(provider):
        if gpus:
            raise ConfigError(f"--gpus {','.join(gpus)}: --provider {provider} uses none of them here")
        return _on_cores(most, threads)
    found = list(gpus) or _gpus()
    if not found and provider == "auto":
        return _on_cores(most, threads)
    if not found:
        raise ConfigError(f"--provider {provider}: neither CUDA_VISIBLE_DEVICES nor nvidia-smi lists a GPU; use --gpus")
    if len(set(found)) < len(found):
        raise ConfigError(f"--gpus {','.join(found)}: one is named twice, but each worker has one to itself")
    if most is not None and most > len(found):
        raise ConfigError(
            f"--max {most}: each worker has a GPU to itself, and there are {len(found)}: {', '.join(found)}"
        )
    return [_on_gpu(gpu, threads) for gpu in found[:most]]


def _on_gpu(gpu: str, threads: int) -> Place:
    # By default CUDA numbers them by speed, nvidia-smi by their slots.
    return Place(f"GPU {gpu}", threads, (), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpu})


def _gpus() -> list[str]:
    """GPUs of this machine, as far as the environment lets us see them; [] if there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    try:
        answer = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split()


def _on_cores(most: int | None, threads: int) -> list[Place]:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    most = min(MOST_BY_DEFAULT, len(cores)) if most is None else most
    if most > len(cores):
        shares = [cores[number % len(cores)] for number in range(most)]
        return [_place((core,), threads) for core in shares]
    bounds = [len(cores) * number // most for number in range(most + 1)]
    return [_place(tuple(cores[a:b]), threads) for a, b in pairwise(bounds)]


def _place(cores: tuple[int, ...], threads: int) -> Place:
    is_range = len(cores) > 2 and cores[-1] - cores[0] == len(cores) - 1
    name = f"{cores[0]}-{cores[-1]}" if is_range else ",".join(map(str, cores))
    return Place(f"core{'s' * (len(cores) > 1)} {name}", threads or len(cores), cores)
