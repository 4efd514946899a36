from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import CannotWrite, CheckpointError
from student_trainer.checkpoint import (
    Checkpoint,
    check_resume,
    has_checkpoints,
    load_checkpoint,
    machine,
    save_checkpoint,
)
from student_trainer.sources.base import Cursor

SETTINGS: dict[str, Any] = {
    "name": "r",
    "source": "dataset",
    "data": {"dataset": "digits", "view": {"name": "affine", "rotation": 15.0}},
    "student": {"name": "mlp", "hidden": [64]},
    "losses": [{"name": "cross_entropy", "weight": 1.0}],
    "optimizer": {"name": "sgd", "lr": 0.1},
    "train": {"batch_size": 8, "seed": 0, "threads": 1, "steps": 10},
    "checkpoint": {"every": 5},
}
CURSOR = Cursor(0, 3, 5, {"offsets": {"t": [7, 8]}})
CHECKPOINT = Checkpoint(
    10, CURSOR.as_dict(), 123, SETTINGS, "ab", {"fingerprint": "f"}, {"field": "image"}, machine(threads=1)
)


def state(number: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((3, 4), number)}, "optimizer": {"state": {0: {"step": torch.tensor(2.0)}}}}


def save(folder: Path, *steps: int, keep: int = 3) -> None:
    for step in steps:
        save_checkpoint(folder, replace(CHECKPOINT, step=step), state(step), keep)


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    assert not has_checkpoints(tmp_path)
    save(tmp_path, 10)
    loaded, tensors = load_checkpoint(tmp_path)
    assert loaded == CHECKPOINT
    assert loaded.at() == CURSOR
    assert loaded.at().place == CURSOR.place
    assert torch.equal(tensors["model"]["w"], state(10)["model"]["w"])


def test_a_checkpoint_of_an_older_form_is_refused_and_stays(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    place = tmp_path / "step-00000020" / "checkpoint.json"
    body = json.loads(place.read_text())["checkpoint"]
    del body["format"], body["undecodable_rows"]
    body["cursor"] = {"pass_number": 0, "sequence": 3, "row": 5, "offsets": [[7, 8]]}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    place.write_text(json.dumps({"checkpoint": body, "sha256": digest}))
    with pytest.raises(
        CheckpointError, match=r"step-00000020: was written by an older Distillog .*start the run anew$"
    ):
        load_checkpoint(tmp_path)
    assert has_checkpoints(tmp_path)


def test_the_newest_are_kept_and_nothing_else_lies_about(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30, 40, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000030", "step-00000040"]


def left(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


@pytest.mark.parametrize(("keep", "stay"), [(1, [150]), (2, [100, 150]), (3, [50, 100, 150])])
def test_what_is_written_stays_and_the_future_that_it_gave_up_goes(tmp_path: Path, keep: int, stay: list[int]) -> None:
    save(tmp_path, 50, 100, 200, 300, keep=9)
    for step in (200, 300):  # the run went back behind these
        cut(tmp_path / f"step-00000{step}" / "state.pt")
    save(tmp_path, 150, keep=keep)
    assert left(tmp_path) == stay
    assert load_checkpoint(tmp_path)[0].step == 150


def test_a_damaged_checkpoint_takes_the_place_of_no_whole_one(tmp_path: Path) -> None:
    save(tmp_path, 100, 200, 300, keep=9)
    cut(tmp_path / "step-00000300" / "state.pt")
    save(tmp_path, 400, keep=2)
    assert left(tmp_path) == [200, 300, 400]
    save(tmp_path, 500, keep=2)
    assert left(tmp_path) == [400, 500]


def test_what_cannot_be_read_now_is_neither_passed_over_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 100, 200, 300, keep=9)
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.parent.name in ("step-00000200", "step-00000300"):
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(CheckpointError, match=r"step-00000300: cannot be read now \(Input/output error\)"):
        load_checkpoint(tmp_path)
    save(tmp_path, 100, keep=1)
    monkeypatch.undo()
    assert left(tmp_path) == [100, 200, 300]


def test_a_users_copies_beside_the_checkpoints_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 100, 200, keep=9)
    shutil.copytree(tmp_path / "step-00000100", tmp_path / "step-00000100-best")
    (tmp_path / "step-00000150.tar.gz").write_bytes(b"an archive")
    assert load_checkpoint(tmp_path)[0].step == 200
    save(tmp_path, 300, keep=1)
    there = sorted(path.name for path in tmp_path.iterdir())
    assert there == ["step-00000100-best", "step-00000150.tar.gz", "step-00000300"]


def test_the_newest_is_the_one_of_most_steps_however_many(tmp_path: Path) -> None:
    save(tmp_path, 99_999_999, 100_000_000, keep=1)
    assert left(tmp_path) == [100_000_000]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = {"flipped": flip, "cut": cut, "emptied": empty, "removed": Path.unlink}


@pytest.mark.parametrize("name", ["state.pt", "checkpoint.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_by_name(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10, 20)
    DAMAGES[damage](tmp_path / "step-00000020" / name)
    with caplog.at_level(logging.WARNING):
        loaded, _ = load_checkpoint(tmp_path)
    assert loaded.step == 10
    assert "step-00000020" in caplog.text
    save(tmp_path, 20)  # the run comes by again, and replaces it
    assert load_checkpoint(tmp_path)[0].step == 20


def test_no_whole_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path)
    save(tmp_path, 10, 20)
    for path in tmp_path.glob("*/state.pt"):
        cut(path)
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        load_checkpoint(tmp_path)


def test_what_a_crash_left_half_written_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / ".step-00000020.new").mkdir()
    (tmp_path / ".step-00000020.new" / "state.pt").write_bytes(b"half")
    assert load_checkpoint(tmp_path)[0].step == 10
    save(tmp_path, 20)
    assert load_checkpoint(tmp_path)[0].step == 20


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in its way")
    with pytest.raises(CannotWrite, match="cannot be written"):
        save(tmp_path / "checkpoints", 10)


def changed(section: str, **values: Any) -> dict[str, Any]:
    return SETTINGS | {section: SETTINGS[section] | values}


def go_on(now: Checkpoint) -> None:
    """As a process does whose checkpoints would be like `now`."""
    check_resume(CHECKPOINT, now.settings, now.source, now.machine, Path("run"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (changed("student", hidden=[32]), r"student.hidden was \[64\], is \[32\]"),
        (changed("data", view={"name": "none"}), "data.view.name was 'affine', is 'none'"),
        (changed("optimizer", lr=0.2), "optimizer.lr was 0.1, is 0.2"),
        (changed("train", batch_size=9), "train.batch_size was 8, is 9"),
        (changed("train", seed=1), "train.seed was 0, is 1"),
        (SETTINGS | {"losses": [{"name": "forward_kl", "weight": 1.0}]}, "losses.0.name was 'cross_entropy'"),
        (SETTINGS | {"teachers": [{"name": "t"}]}, "teachers.0.name was None, is 't'"),
    ],
)
def test_a_run_that_would_learn_something_else_is_not_resumed(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        go_on(replace(CHECKPOINT, settings=settings))


def test_another_dataset_or_teacher_is_refused() -> None:
    with pytest.raises(CheckpointError, match="fingerprint was 'f', is 'g'"):
        go_on(replace(CHECKPOINT, source={"fingerprint": "g"}))


def test_another_kind_of_source_is_taken_where_it_holds_the_same(caplog: pytest.LogCaptureFixture) -> None:
    other = replace(CHECKPOINT, settings={**SETTINGS, "source": "stream"})
    with caplog.at_level(logging.WARNING):
        go_on(other)
    assert "resumes with another source was 'dataset', is 'stream'" in caplog.text
    with pytest.raises(CheckpointError, match=r"source was 'dataset', is 'stream'; fingerprint was 'f', is None;"):
        go_on(replace(other, source={"stream": "s", "stream_id": "ab"}))


def test_where_other_data_lie_is_said_and_not_two_fingerprints() -> None:
    now = replace(CHECKPOINT, settings=changed("data", dataset="elsewhere"), source={"fingerprint": "g"})
    with pytest.raises(CheckpointError, match=r"data\.dataset was '.*', is 'elsewhere'; these are other data: set"):
        go_on(now)


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (replace(CHECKPOINT, settings=changed("train", steps=20)), "train.steps was 10, is 20"),
        (replace(CHECKPOINT, machine=CHECKPOINT.machine | {"torch": "0.1"}), "torch was "),
        (replace(CHECKPOINT, machine=CHECKPOINT.machine | {"threads": "9"}), "threads was '1', is '9'"),
        (replace(CHECKPOINT, machine=CHECKPOINT.machine | {"torch_cpu_capability": "X"}), "torch_cpu_capability was"),
    ],
)
def test_what_may_change_the_bits_only_warns(now: Checkpoint, says: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        go_on(now)
    assert says in caplog.text


@pytest.mark.parametrize(
    "settings",
    [changed("checkpoint", every=7), changed("data", dataset="elsewhere"), changed("train", loaders=7), SETTINGS],
)
def test_what_changes_nothing_says_nothing(settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    go_on(replace(CHECKPOINT, settings=settings))
    assert not caplog.text
