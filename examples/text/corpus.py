"""Texts that every machine has: docstrings and documentation of the standard library and of the installed packages.

A paragraph is there once: one that is equal to another but for case, digits and punctuation is left out, and so is one
most of whose runs of eight words were read before. Whole packages are in training, validation or test, by a hash of
their names, so that no text of a package that is asked about was read in training. A packages' list depends on what is
installed; with equal packages the files are equal on every machine.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.hashing import hash_int, tag
from schemas.errors import ConfigError

SPLITS = ("train", "validation", "test")
SHARES = (16, 2, 2)
"""Packages of each split, of twenty."""
KINDS = ("class", "function", "module", "property")
"""What a docstring is of; a method is a function."""
CONTENTS = "corpus.json"

_DOCUMENTS = (".md", ".rst", ".txt")
_LEFT_OUT = {"_vendor", "vendor", "vendored", "test", "tests", "testing", "__pycache__", "node_modules"}
"""Copies of other packages, and what is written for machines."""
_RUN = 8
"""Words of a run; a paragraph with fewer is one run."""
_LEAST_WORDS, _MOST_CHARACTERS = 5, 2000
_LEAST_LETTERS = 0.8
"""Of a paragraph's characters that are no white space."""


@dataclass
class Package:
    """What one package gives."""

    paragraphs: list[str] = field(default_factory=list)
    described: list[tuple[str, str]] = field(default_factory=list)
    """(kind, first paragraph of its docstring)"""


def write_corpus(folder: Path, most: int) -> dict[str, Any]:
    """Write SPLIT/PACKAGE.txt, a paragraph a line, and kinds-train.jsonl and kinds-test.jsonl, unless they lie there.

    Of a package files are read, in the order of a hash, until they have given `most` characters. Returns what
    corpus.json then says. Raises ConfigError where this Python has no texts to speak of.
    """
    if (found := _kept(folder)).get("most") == most:
        return found
    if folder.exists():
        shutil.rmtree(folder)
    heard = Heard()
    packages = {name: read_package(files, most, heard) for name, files in sorted(installed().items())}
    counts: dict[str, Any] = {}
    for split in SPLITS:
        names = [name for name, each in packages.items() if split_of(name) == split and each.paragraphs]
        if not names:
            raise ConfigError(f"this Python has no package with docstrings for {split}: is its standard library there?")
        (folder / split).mkdir(parents=True)
        for name in names:
            text = "".join(f"{paragraph}\n" for paragraph in packages[name].paragraphs)
            (folder / split / f"{name}.txt").write_text(text, encoding="utf-8")
        texts = [text for name in names for text in packages[name].paragraphs]
        counts[split] = {"packages": len(names), "paragraphs": len(texts), "characters": sum(map(len, texts))}
    for split in ("train", "test"):
        # Nobody chooses anything by validation but whether the teacher may teach, so that all that was not read counts.
        rows = [
            row
            for name, each in packages.items()
            if (split_of(name) == "train") == (split == "train")
            for row in each.described
        ]
        chosen = balanced(rows)
        lines = [json.dumps({"text": text, "kind": kind}) + "\n" for kind, text in chosen]
        (folder / f"kinds-{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        counts[split]["described"] = len(chosen)
    contents = {"most": most, "left_out": heard.left_out, **counts, "sha256": _hash(folder)}
    # Last: what has this file is whole.
    (folder / CONTENTS).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    return contents


class Heard:
    """Which paragraphs were there before."""

    def __init__(self) -> None:
        self._runs: set[int] = set()
        self.left_out = 0

    def is_new(self, paragraph: str) -> bool:
        """Whether no other, or hardly any part of another, was equal to it; it counts as heard from then on."""
        words = re.findall(r"[a-z]+", paragraph.lower())
        count = max(1, len(words) - _RUN + 1)
        # Python's own hash of texts differs from process to process.
        runs = {tag(" ".join(words[at : at + _RUN])) for at in range(count)}
        new = 2 * len(runs - self._runs) > len(runs)
        self._runs |= runs
        self.left_out += not new
        return new


def installed() -> dict[str, list[Path]]:
    """Files of Python and of documentation of each module of the standard library and each installed package."""
    roots = [Path(sysconfig.get_path("stdlib")), *(Path(p) for p in sys.path if Path(p).name.endswith("-packages"))]
    found: dict[str, list[Path]] = {}
    for number, root in enumerate(roots):
        for entry in sorted(root.iterdir()):
            name = entry.name.removesuffix(".py")
            if name in _LEFT_OUT or "." in name or "-" in name:
                continue
            if number == 0 and name not in sys.stdlib_module_names:
                continue
            files = [entry] if entry.is_file() else sorted(entry.rglob("*"))
            suitable = [path for path in files if path.suffix in (".py", *_DOCUMENTS) and path.is_file()]
            kept = [path for path in suitable if not _LEFT_OUT & set(path.relative_to(root).parts)]
            if kept and name not in found:
                found[name] = sorted(kept, key=lambda path: (hash_int(tag(str(path.relative_to(root)))), path))
    return found


def split_of(package: str) -> str:
    """The split that a package is in, by its name alone; an underscore before it tells no two apart."""
    draw = hash_int(tag("examples.text"), tag(package.strip("_"))) % sum(SHARES)
    return SPLITS[0] if draw < SHARES[0] else SPLITS[1] if draw < SHARES[0] + SHARES[1] else SPLITS[2]


def read_package(files: list[Path], most: int, heard: Heard) -> Package:
    """Read files until they have given `most` characters; those that cannot be read say nothing."""
    package, characters = Package(), 0
    for path in files:
        for kind, text in _texts(path):
            for number, paragraph in enumerate(paragraphs(text)):
                if not is_english(paragraph) or not heard.is_new(paragraph):
                    continue
                package.paragraphs.append(paragraph)
                characters += len(paragraph)
                if number == 0 and kind in KINDS:
                    package.described.append((kind, paragraph))
        if characters >= most:
            break
    return package


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a text, each on one line; a very long one is cut."""
    return [" ".join(each.split())[:_MOST_CHARACTERS] for each in re.split(r"\n\s*\n", text) if each.strip()]


def is_english(paragraph: str) -> bool:
    """Whether it is words for the most part, and neither code nor a table of figures."""
    if paragraph.startswith(">>>") or len(re.findall(r"[A-Za-z]{2,}", paragraph)) < _LEAST_WORDS:
        return False
    solid = "".join(paragraph.split())
    return sum(letter.isascii() and letter.isalpha() for letter in solid) >= _LEAST_LETTERS * len(solid)


def balanced(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """As many rows of each kind as the rarest has, chosen and ordered by a hash."""
    ordered = sorted(rows, key=lambda row: (hash_int(tag("examples.text.kind"), tag(row[1])), row))
    each = min(Counter(kind for kind, _ in rows)[kind] for kind in KINDS)
    taken: Counter[str] = Counter()
    chosen = []
    for kind, text in ordered:
        taken[kind] += 1
        if taken[kind] <= each:
            chosen.append((kind, text))
    return chosen


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """(kind, text) of a file's docstrings, or of a document, whose kind is ""."""
    try:
        source = path.read_text(encoding="utf-8")
        if path.suffix != ".py":
            yield "", source
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign code, such as invalid escapes
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError):
        return
    if path.parent.name == "pydoc_data" and path.name == "topics.py":
        # What help() knows of Python: a dict of texts, no docstrings.
        for value in ast.walk(tree):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield "", value.value
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield _kind(node), text


def _kind(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    return "property" if any("property" in ast.unparse(each) for each in node.decorator_list) else "function"


def _kept(folder: Path) -> dict[str, Any]:
    """What lies there, if it is whole, else nothing."""
    try:
        contents: dict[str, Any] = json.loads((folder / CONTENTS).read_bytes())
        return contents if contents["sha256"] == _hash(folder) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _hash(folder: Path) -> str:
    """Hex SHA-256 over names and bytes of all texts."""
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.txt"), *folder.glob("*.jsonl")]):
        raw = path.read_bytes()
        digest.update(f"{path.relative_to(folder)}\0{len(raw)}\0".encode() + raw)
    return digest.hexdigest()
