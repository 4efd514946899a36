"""Where the workers of a fleet run: no two share a GPU, and no two share a core while there are enough."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from teacher_service.fleet import places
from teacher_service.fleet.places import find_places


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    there = [0, 1, 2, 3, 8, 9, 10]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(there), raising=False)
    return there


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that has CUDA."""
    found = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(places, "choose_providers", lambda name: found if name != "cpu" else found[1:])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with three GPUs, as nvidia-smi says."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return program


def visible(found: list[places.Place]) -> list[str]:
    return [place.environment["CUDA_VISIBLE_DEVICES"] for place in found]


@pytest.mark.parametrize("most", range(1, 8))
def test_cores_are_split_evenly_and_each_belongs_to_one_worker(cores: list[int], most: int) -> None:
    found = find_places(most, "cpu", (), 0)
    assert [core for place in found for core in place.cores] == cores
    sizes = [len(place.cores) for place in found]
    assert len(found) == most
    assert max(sizes) - min(sizes) <= 1
    assert [place.threads for place in found] == sizes


def test_more_workers_than_cores_have_one_each_in_turn(cores: list[int]) -> None:
    found = find_places(9, "cpu", (), 0)
    assert [place.cores for place in found] == [(core,) for core in [*cores, 0, 1]]


def test_threads_that_were_asked_for_are_taken(cores: list[int]) -> None:
    assert [place.threads for place in find_places(2, "cpu", (), 5)] == [5, 5]


@pytest.mark.parametrize("num_cores", [3, 40])
def test_without_a_number_there_is_a_worker_a_core_but_eight_at_most(
    num_cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(num_cores)), raising=False)
    found = find_places(None, "cpu", (), 0)
    assert len(found) == min(8, num_cores)
    assert found[-1].name == ("core 2" if num_cores == 3 else "cores 35-39")


@pytest.mark.usefixtures("cuda", "nvidia_smi")
def test_each_worker_has_a_gpu_to_itself() -> None:
    found = find_places(None, "auto", (), 0)
    assert visible(found) == ["0", "1", "2"]
    assert [place.name for place in found] == ["GPU 0", "GPU 1", "GPU 2"]
    assert {place.environment["CUDA_DEVICE_ORDER"] for place in found} == {"PCI_BUS_ID"}
    assert visible(find_places(2, "cuda", (), 0)) == ["0", "1"]
    assert visible(find_places(None, "cuda", ("2", "0"), 0)) == ["2", "0"]


@pytest.mark.usefixtures("cuda", "nvidia_smi")
@pytest.mark.parametrize(
    ("said", "gpus"), [("1,2", ["1", "2"]), ("GPU-ab, GPU-cd", ["GPU-ab", "GPU-cd"]), ("1,-1,2", ["1"])]
)
def test_gpus_that_the_environment_hides_are_not_used(
    said: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert visible(find_places(None, "auto", (), 0)) == gpus


@pytest.mark.usefixtures("cuda")
def test_without_a_gpu_the_cores_are_used_unless_cuda_was_asked_for(
    cores: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [place.cores for place in find_places(1, "auto", (), 0)] == [tuple(cores)]
    with pytest.raises(ConfigError, match="--provider cuda: neither CUDA_VISIBLE_DEVICES nor nvidia-smi lists a GPU"):
        find_places(1, "cuda", (), 0)


@pytest.mark.usefixtures("cuda", "nvidia_smi")
def test_workers_that_would_share_a_gpu_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--max 4: each worker has a GPU to itself, and there are 3: 0, 1, 2"):
        find_places(4, "auto", (), 0)
    with pytest.raises(ConfigError, match=r"--gpus 1,1: one is named twice"):
        find_places(None, "auto", ("1", "1"), 0)
    with pytest.raises(ConfigError, match=r"--gpus 1: --provider cpu uses none"):
        find_places(None, "cpu", ("1",), 0)
