"""`import distillog` offers what it says, loads nothing heavy, and implements nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import distillog
from distillog_command import PACKAGES

ROOT = Path(__file__).parents[2]
TREE = ast.parse((ROOT / "distillog.py").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "own-loop.md").read_text(encoding="utf-8")


def python(code: str, folder: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | env
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", distillog.__all__)
def test_a_name_is_there_is_documented_and_is_what_its_module_calls_so(name: str) -> None:
    found = getattr(distillog, name)
    assert name in dir(distillog)
    assert found.__doc__
    assert f"`{name}" in PAGE
    assert getattr(found, "__module__", name).partition(".")[0] in {*PACKAGES, "errors"}


def test_no_other_name_is_offered() -> None:
    assert sorted(distillog.__all__) == distillog.__all__ == dir(distillog)
    with pytest.raises(AttributeError, match="module 'distillog' has no attribute 'labeled_batches'"):
        _ = distillog.labeled_batches


def test_what_is_typed_is_what_is_found() -> None:
    """Under TYPE_CHECKING each name is imported from where `__getattr__` finds it."""
    typed = {
        alias.name: node.module
        for block in TREE.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == distillog._WHERE
    assert {*typed, "errors", "DistillogError"} == set(distillog.__all__)


def test_nothing_is_implemented_in_it() -> None:
    defined = [node.name for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert defined == ["__getattr__", "__dir__"]


def test_the_import_loads_nothing_heavy() -> None:
    heavy = ("kafka", "numpy", "fastavro", "torch", "onnx", "onnxruntime", "rich", "sklearn", "click")
    done = python(f"import sys, distillog; print([name for name in {heavy!r} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_module_of_the_users_that_hides_one_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("")
    done = python("import distillog", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {tmp_path / 'pipeline.py'} hides Distillog's own package 'pipeline': rename it, or take its "
        "folder out of PYTHONPATH"
    )


def test_a_script_of_the_same_name_hides_nothing_from_the_command(tmp_path: Path) -> None:
    (tmp_path / "distillog.py").write_text("raise RuntimeError('the command imports no such module')")
    code = "from distillog_command import main; main()"
    done = python(f"import sys; sys.argv = ['distillog', '--help']; {code}", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.stdout.startswith("Usage: "), done.stderr
