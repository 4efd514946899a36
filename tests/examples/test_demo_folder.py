from __future__ import annotations

from pathlib import Path

import pytest
from folder import ENTRIES, DemoFolder

from schemas.errors import ConfigError, RunLocked


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = DemoFolder(tmp_path / "demo")
    folder.clear()
    folder.close()
    return folder.path


def test_a_folder_that_the_demo_did_not_make_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not made by the demo"):
        DemoFolder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path):
    (tmp_path / "demo").write_text("")
    with pytest.raises(ConfigError, match="not made by the demo"):
        DemoFolder(tmp_path / "demo")


def test_an_empty_folder_is_taken(tmp_path: Path):
    DemoFolder(tmp_path).close()


def test_a_second_start_removes_what_the_demo_made_and_nothing_else(made: Path):
    for name in ENTRIES:
        if "." in name:
            (made / name).write_text("old")
        else:
            (made / name / "old").mkdir(parents=True)
    (made / "notes.txt").write_text("mine")
    folder = DemoFolder(made)
    folder.clear()
    folder.close()
    assert (made / "notes.txt").read_text() == "mine"
    assert not list(made.glob("*/old"))
    assert not (made / "report.json").exists()


def test_a_linked_entry_loses_the_link_and_not_what_it_points_to(made: Path, tmp_path: Path):
    (tmp_path / "precious").mkdir()
    (made / "broker").symlink_to(tmp_path / "precious")
    folder = DemoFolder(made)
    folder.clear()
    folder.close()
    assert (tmp_path / "precious").is_dir()


def test_two_demos_in_one_folder_are_refused(made: Path):
    first = DemoFolder(made)
    with pytest.raises(RunLocked, match="another demo"):
        DemoFolder(made)
    first.close()
