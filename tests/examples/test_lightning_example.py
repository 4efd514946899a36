"""The example of a fit of Lightning's: what it learns, and that nothing which stops it leaves a trace."""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.models import classifier
from support.processes import Distillog

import distillog as library

pytestmark = [
    pytest.mark.kafka,
    # Lightning's own, of a PyTorch that is newer than it.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

SCRIPT = Path(__file__).parents[2] / "examples" / "lightning_loop" / "train.py"
STEPS = 1297 * 3 // 64


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 80


class Stopped(Exception):
    """What ends a fit in the middle of a step."""


class Passes:
    """The library with three passes where the example asks for twenty; keeps the losses, and ends it at the `last`."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.last = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(library, name)

    def create_stream(self, *arguments: Any, **options: Any) -> Any:
        return library.create_stream(*arguments, **options | {"epochs": 3})

    def forward_kl(self, *arguments: Any, **options: Any) -> torch.Tensor:
        loss = library.forward_kl(*arguments, **options)
        self.losses.append(loss.item())
        if len(self.losses) == self.last:
            raise Stopped
        return loss


@pytest.fixture
def example(
    distillog: Distillog, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> tuple[ModuleType, Passes]:
    """Its module, and what it takes for the library."""
    specification = importlib.util.spec_from_file_location("lightning_loop_example", SCRIPT)
    assert specification
    assert specification.loader
    module, passes = importlib.util.module_from_spec(specification), Passes()
    specification.loader.exec_module(module)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", distillog.settings.bootstrap_servers)
    monkeypatch.setattr(module, "STREAM", fresh_name("lightning"))
    monkeypatch.setattr(module, "distillog", passes)
    return module, passes


def saved(folder: Path) -> tuple[int, dict[str, Any], str]:
    """Of its checkpoint the step, the state of the labels, and the SHA-256 of the weights."""
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["last.ckpt"]
    found = torch.load(folder / "lightning-digits" / "last.ckpt", weights_only=True)
    (labels,) = found["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    weights = hashlib.sha256()
    for name, tensor in sorted(found["state_dict"].items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    return found["global_step"], labels, weights.hexdigest()


def test_it_learns_and_a_stop_leaves_no_trace_in_its_weights(
    distillog: Distillog,
    example: tuple[ModuleType, Passes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Any,
) -> None:
    (module, passes), model = example, classifier(tmp_path / "teacher.onnx")
    # As the example does it, which finds all there, so that all labels can be made at once.
    passes.create_stream(module.STREAM, "digits?split=train", view="affine", order_size=64, partitions=8)
    library.add_teacher(module.STREAM, "teacher", model)
    library.feed(module.STREAM)
    distillog.succeed("teach", module.STREAM, model, "--threads", 1, "--until-idle")
    before = set(threading.enumerate())

    def run(folder: str, last: int = 0) -> list[float]:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        passes.losses, passes.last = [], last
        if last:
            with pytest.raises(Stopped):
                module.main(str(model))
        else:
            module.main(str(model))
        eventually(lambda: set(threading.enumerate()) <= before, 10, "the end of its threads")
        return passes.losses

    first = run("stopped", last=55)
    step, labels, _ = saved(tmp_path / "stopped")
    assert step == 50
    rest = run("stopped")
    whole = run("whole")
    assert run("stopped") == []  # nothing is left to learn, and nothing else is written
    assert len(whole) == STEPS
    assert first[:50] + rest == whole
    assert sum(whole[-10:]) < 0.5 * sum(whole[:10])
    assert saved(tmp_path / "stopped") == saved(tmp_path / "whole")
    assert saved(tmp_path / "whole")[0] == STEPS
    assert saved(tmp_path / "whole")[1] != labels
    assert [one["name"] for one in library.status(module.STREAM)["runs"]] == ["lightning"]
