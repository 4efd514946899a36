"""The command's entry: a user's module in place of one of our packages is named, and nothing else happens."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def called(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "from distillog_command import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["pipeline.py", "schemas/__init__.py", "student_trainer.py"])
def test_a_module_that_hides_one_of_ours_is_named(tmp_path: Path, name: str) -> None:
    hiding = tmp_path / name
    hiding.parent.mkdir(exist_ok=True)
    hiding.write_text("raise RuntimeError('this is not what distillog imports')\n")
    done = called("topics", "list", path=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    package = Path(name).parts[0].removesuffix(".py")
    assert done.stderr == (
        f"error: {hiding} hides Distillog's own package {package!r}: rename it, or take its folder out of PYTHONPATH\n"
    )


def test_a_module_of_another_name_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "my_data.py").write_text("")
    (tmp_path / "pipeline.toml").write_text("")
    done = called("--help", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")


def test_the_entry_point_looks_before_it_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"distillog": "distillog_command:main"}
    assert project["tool"]["setuptools"]["py-modules"] == ["distillog", "distillog_command"]
