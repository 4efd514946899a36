"""docs/security.md has the rights that `distillog topics rights` grants."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.rights import ROLES, Scope, grants

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
SCOPE = Scope("STREAM", "TEACHER", "RUN", "ID")


@pytest.mark.parametrize("role", ROLES)
def test_the_table_of_a_role_has_its_rights_and_no_others(role: str) -> None:
    found = re.search(rf"^### {role}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    assert found, f"no heading {role!r}"
    written = [line for line in found[1].splitlines() if line.startswith("| `")]
    assert written == [
        f"| {', '.join(f'`{each}`' for each in grant.operations)} "
        f"| {grant.kind} `{grant.name}{'*' * grant.prefixed}` | {grant.why} |"
        for grant in grants(role, SCOPE)
    ]


def test_every_role_has_a_table() -> None:
    assert set(re.findall(r"^### (\w+)$", PAGE, re.M)) == set(ROLES)


def test_the_code_that_the_page_names_is_there() -> None:
    root = Path(__file__).parents[2]
    for path in re.findall(r"`([\w/]+\.py)`", PAGE):
        assert any((root / folder / path).is_file() for folder in ("", "pipeline/kafka")), path
