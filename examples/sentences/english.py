"""Sentences of real English that every installation has: what the docstrings of its packages say, split by package."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from pipeline.hashing import hash_int, tag
from schemas.errors import ConfigError

STDLIB = "the standard library"
TRAIN = (STDLIB, "torch", "scipy", "numpy", "sympy")
TEST = ("networkx", "scikit-learn")
"""Graphs and classical machine learning: no package of training is of these."""
WORDS = (5, 20)

_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
# Letters and ordinary punctuation: no code, no formula, no field list.
_SENTENCE = re.compile(r"(?<!\S)[A-Z][a-z]* [^.:*|\\`\[\]{}<>=_/#\"()]{15,160}\.(?=\s|$)")


def write(folder: Path, count: dict[str, int]) -> dict[str, list[str]]:
    """Write train/sentences.txt and test/sentences.txt, a sentence a line, and return them.

    Of all sentences those are taken whose hash is least, as many as `count` says; none is in both, nor twice, whatever
    its capitals.

    Raises:
        ConfigError: a package is missing, or there are not so many sentences.
    """
    seen: set[str] = set()
    found = {}
    for split, packages in {"test": TEST, "train": TRAIN}.items():
        fresh = []
        for sentence in (each for package in packages for each in sentences(package)):
            if sentence.lower() not in seen:
                seen.add(sentence.lower())
                fresh.append(sentence)
        if len(fresh) < count[split]:
            raise ConfigError(f"{', '.join(packages)} have {len(fresh)} sentences, {count[split]} are asked for")
        found[split] = sorted(fresh, key=lambda each: hash_int(tag("examples.sentences"), tag(each)))[: count[split]]
        path = folder / split / "sentences.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{each}\n" for each in found[split]), encoding="utf-8")
    return found


def sentences(package: str) -> Iterator[str]:
    """Yield those of a package's docstrings, file by file. Raises ConfigError where it is not installed."""
    for path in _files(package):
        for docstring in _DOCSTRING.findall(path.read_text(encoding="utf-8", errors="replace")):
            for found in _SENTENCE.findall(docstring):
                words = found.split()
                if WORDS[0] <= len(words) <= WORDS[1]:
                    yield " ".join(words)


def _files(package: str) -> Sequence[Path]:
    if package == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        paths = (path for path in root.rglob("*.py") if "site-packages" not in path.parts)
        return sorted(path for path in paths if not _of_tests(path.relative_to(root)))
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"{package} is not installed: pip install 'distillog[teacher,student,data,text,broker]'"
        ) from None
    return sorted(Path(str(each.locate())) for each in files if each.suffix == ".py" and not _of_tests(Path(each)))


def _of_tests(path: Path) -> bool:
    return any("test" in part for part in path.parts)
