"""Captured labels of a teacher that moves: the folder says by which of its generations they are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.generations import EVERY, RUN_ID
from whole_captures import BY_GENERATIONS, MOVED, no_fsync, read_all, whole_in, whole_of_generations_in

from pipeline.captured.contents import NAME
from pipeline.captured.folder import CapturedFolder
from schemas.errors import DecodeError


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    with no_fsync():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_in(tmp_path_factory.mktemp("captured"))


@pytest.fixture(scope="module")
def whole_of_generations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_of_generations_in(tmp_path_factory.mktemp("captured"))


def test_a_folder_says_which_generations_its_labels_are_of(whole_of_generations: Path, whole: Path) -> None:
    contents = json.loads((whole_of_generations / NAME).read_text())
    (listed,) = contents["teachers"].values()
    assert listed["publisher"] == {"run": "online", "run_id": RUN_ID, "every": EVERY}
    assert [(each["number"], each["step"]) for each in listed["generations"]] == [(1, 10), (2, 20)]
    assert not {"publisher", "generations"} & set(*json.loads((whole / NAME).read_text())["teachers"].values())
    files = CapturedFolder(whole_of_generations).teacher("cnn")
    lineage, wanted = files.lineage, MOVED.lineages["cnn"]
    files.close()
    assert (lineage.publisher, lineage.generations) == (wanted.publisher, wanted.generations[:2])
    assert [each.generation for each in read_all(whole_of_generations)] == [each.generation for each in BY_GENERATIONS]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda teacher: teacher["generations"].reverse(), "generation 2 is listed behind 0"),
        (lambda teacher: teacher["generations"][0].update(number=-1), "-1 is no number"),
        (lambda teacher: teacher["generations"][0].update(sha256="ab"), "a SHA-256 is 64 lower-case hex digits"),
        (lambda teacher: teacher["publisher"].update(every=0), "publishes every 0 orders"),
        (lambda teacher: teacher["publisher"].update(run="a/b"), "run name 'a/b'"),
        (lambda teacher: teacher.pop("generations"), "misses 'generations'"),
        (lambda teacher: teacher.update(generations=[]), "does not match its own SHA-256"),
    ],
)
def test_a_list_of_generations_that_no_capture_wrote_is_refused(
    change: Any, said: str, whole_of_generations: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole_of_generations, tmp_path / "c"))
    contents = json.loads((folder / NAME).read_text())
    change(contents["teachers"]["cnn"])
    (folder / NAME).write_text(json.dumps(contents))
    with pytest.raises(DecodeError, match=f"{NAME}: is damaged .*{re.escape(said)}"):
        CapturedFolder(folder)
