"""What pyproject.toml asks for, constraints.txt pins."""

from __future__ import annotations

import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = sorted({*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())})
LINES = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


def test_a_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    asked = [Requirement(text) for text in REQUIREMENTS]
    assert [str(one) for one in asked if not one.specifier.contains(PINS[canonicalize_name(one.name)])] == []


def test_a_pin_is_an_exact_version_of_a_package_index() -> None:
    for line in LINES:
        (specifier,) = Requirement(line).specifier
        assert specifier.operator == "==", line
        assert not {"+", "*"} & set(specifier.version), line


def test_a_package_is_pinned_once() -> None:
    assert len(PINS) == len(LINES)
