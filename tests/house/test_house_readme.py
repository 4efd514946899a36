"""The README says what is there: folders, targets of make, commands; what a module is for, its own first line says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click

from distillog_command import PACKAGES
from pipeline.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

MODULES = sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LINE = re.compile(r"( *)([\w.-]+/?) {2,}(\S.*)")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    assert found, f"the README has no section {title!r}"
    return found[1]


def tree() -> dict[str, str]:
    """Path -> its words, of the tree in the section "The house"."""
    block = re.search(r"^```\n(.*?)^```", section("The house"), re.M | re.S)
    assert block
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block[1].splitlines():
        match = LINE.fullmatch(line)
        assert match, f"no line of a tree: {line!r}"
        depth = len(match[1]) // 2
        path = "".join(folders[:depth]) + match[2]
        assert path not in found, f"{path} stands there twice"
        found[path] = match[3]
        folders[depth:] = [match[2]]
    return found


TREE = tree()


def test_what_the_tree_names_is_there() -> None:
    assert [path for path in TREE if not ((ROOT / path).is_dir() if path[-1] == "/" else (ROOT / path).is_file())] == []


def test_the_tree_says_about_five_words_of_each() -> None:
    assert {path: words for path, words in TREE.items() if not 1 <= len(words.split()) <= 7} == {}


def test_the_tree_names_every_folder_of_the_packages_and_no_file() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.*") if "__pycache__" not in path.parts]
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in files}
    assert {path for path in TREE if path.startswith(tuple(f"{package}/" for package in PACKAGES))} == folders


def test_the_first_line_of_a_module_says_what_it_is_for() -> None:
    for module in MODULES:
        text = (ROOT / module).read_text(encoding="utf-8")
        first = str(ast.get_docstring(ast.parse(text))).splitlines()[0]
        assert text.startswith(f'"""{first}'), f"{module}: `head -n 1` is to show it"
        assert first.endswith("."), module
        assert len(first.split()) >= 5, module


def test_the_tree_names_every_folder_of_the_repository() -> None:
    ignored = {line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines()}
    folders = {
        f"{path.name}/"
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in ignored
        if not path.name.endswith(".egg-info")
    }
    assert {path for path in TREE if path.count("/") == 1 and path.endswith("/")} == folders


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    pages = [README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")]
    blocks = [block for page in pages for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)]
    inline = [code for page in pages for code in re.findall(r"`(make [a-z-]+[^`]*)`", page)]
    named = {match for text in [*blocks, *inline] for match in re.findall(r"^make ([a-z-]+)", text, re.M)}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_the_table_of_commands_names_every_command() -> None:
    table = section("Commands")
    for name in main.list_commands(click.Context(main)):
        command = main.get_command(click.Context(main), name)
        if not isinstance(command, click.Group):
            assert f"`distillog {name} " in table
            continue
        row = "\n".join(line for line in table.splitlines() if f"`distillog {name} " in line)
        for each in command.list_commands(click.Context(command)):
            assert re.search(rf"`(distillog {name} )?{each}[` ]", row), f"distillog {name} {each}"


def test_the_place_of_the_demos_table_is_marked() -> None:
    assert README.count("<!-- demo table -->") == 1
