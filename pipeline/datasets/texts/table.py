"""Rows of a `.csv`, `.tsv` or `.jsonl` file: a text or a pair of them, with a label or a score.

n: rows; L: tokens of each.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt

from pipeline.datasets.base import Dataset, Field, Ints, Samples, Vocabulary
from pipeline.datasets.params import Params
from pipeline.datasets.texts.tokens import Text, Tokens, tokens_of
from schemas.errors import ConfigError
from schemas.names import did_you_mean

_LARGEST_CELL = 1 << 24


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that has no text."""

    reason: str


Row = Mapping[str, Any] | Fault
"""Column -> value"""


@dataclass(frozen=True, slots=True, eq=False)
class TextTable:
    """Texts that lie in memory, tokenised as they are read."""

    uri: str
    texts: tuple[Text | None, ...]
    """None of a row that cannot be read."""
    faults: Mapping[int, str]
    """Row -> why it cannot be read."""
    label_array: Ints
    """[n] int64"""
    scores: npt.NDArray[np.float32] | None
    """[n]: NaN where a row has none."""
    class_names: tuple[str, ...]
    num_classes: int
    counted: bool
    """Whether the classes are those that the labels show."""
    tokens: Tokens
    thread_safe: ClassVar[bool] = True

    @property
    def num_samples(self) -> int:
        """Rows of the file."""
        return len(self.texts)

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokenizer."""
        return self.tokens.vocabulary

    @property
    def fields(self) -> dict[str, Field]:
        """As `Tokens.encode` gives them, and `score` where a column of scores was named."""
        return self.tokens.fields | ({} if self.scores is None else {"score": Field((), "float32")})

    def read(self, sample_ids: Ints) -> Samples:
        """A row without a text is a fault."""
        rows: list[int] = []
        texts: list[Text] = []
        faults: list[tuple[int, str]] = []
        for row, sample_id in enumerate(sample_ids.tolist()):
            text = self.texts[sample_id]
            if text is None:
                faults.append((row, self.faults[sample_id]))
            else:
                rows.append(row)
                texts.append(text)
        arrays, encoded, refused = self.tokens.encode(texts)
        faults += [(rows[row], why) for row, why in refused]
        kept = np.array(rows, np.int64)[encoded]
        if self.scores is not None:
            arrays["score"] = self.scores[sample_ids[kept]]
        return Samples(arrays, kept, tuple(sorted(faults)))

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64, -1 where a row has none."""
        return self.label_array[sample_ids]


def text_table(path: str, params: dict[str, str]) -> Dataset:
    """`text_table:/data/reviews.csv?text=review&label=stars`; `text2` names a pair's other text, `score` its score.

    Raises ConfigError for a file that is missing, of another kind or no UTF-8, a column that it does not have, a label
    that is no class, a score that is no number, and as `Tokens`.
    """
    taken = Params("text_table", params)
    text, text2 = taken.text("text", "text"), taken.text("text2", "")
    label, score = taken.text("label", ""), taken.text("score", "")
    classes = tuple(filter(None, taken.text("classes", "").split(",")))
    file = Path(path).resolve() if path else None
    tokens = tokens_of("text_table", taken, file and file.parent)
    if file is None or tokens is None:
        raise ConfigError("dataset text_table needs a file: write text_table:/path/to/file.csv, .tsv or .jsonl")
    if not file.is_file():
        raise ConfigError(f"dataset text_table: no file {file}")
    columns = tuple(filter(None, (text, text2, label, score)))
    rows = list(_rows(file, columns))
    if not rows:
        raise ConfigError(f"dataset text_table: {file} has no rows")
    texts: list[Text | None] = []
    faults: dict[int, str] = {}
    for number, row in enumerate(rows):
        found = _text(row, text, text2)
        texts.append(None if isinstance(found, Fault) else found)
        if isinstance(found, Fault):
            faults[number] = f"{file.name}, row {number + 1}: {found.reason}"
    labels = [None if isinstance(row, Fault) or not label else row.get(label) for row in rows]
    label_array, names, num_classes = _classes(f"{file}, column {label!r}", labels, classes)
    scores = None
    if score:
        given_scores = [None if isinstance(row, Fault) else row.get(score) for row in rows]
        scores = np.array(
            [_score(f"{file}, column {score!r}, row {number + 1}", each) for number, each in enumerate(given_scores)],
            np.float32,
        )
    uri = f"text_table:{path}" + (f"?{urlencode(params, safe='/')}" if params else "")
    counted = not names and num_classes > 0
    return TextTable(uri, tuple(texts), faults, label_array, scores, names, num_classes, counted, tokens)


def _text(row: Row, text: str, text2: str) -> Text | Fault:
    if isinstance(row, Fault):
        return row
    first, second = row.get(text), row.get(text2) if text2 else ""
    if not isinstance(first, str) or not isinstance(second, str):
        return Fault(f"no text in {text} or {text2}" if text2 else f"no text in {text}")
    return (first, second) if text2 else first


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    separator = {".csv": ",", ".tsv": "\t"}.get(file.suffix.lower())
    read: Callable[[Path, tuple[str, ...]], Iterator[Row]]
    if separator:
        read = partial(_of_csv, separator=separator)
    elif file.suffix.lower() in (".jsonl", ".ndjson"):
        read = _of_jsonl
    else:
        raise ConfigError(f"dataset text_table: {file} is no .csv, .tsv or .jsonl file")
    try:
        yield from read(file, columns)
    except UnicodeDecodeError as error:
        raise ConfigError(f"dataset text_table: {file} is no UTF-8 ({error.reason}): write it as UTF-8") from error


def _of_csv(file: Path, columns: tuple[str, ...], separator: str) -> Iterator[Row]:
    csv.field_size_limit(_LARGEST_CELL)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines, delimiter=separator, strict=True)
        try:
            _refuse_missing(file, columns, table.fieldnames or ())
            yield from table
        except csv.Error as error:
            raise ConfigError(f"dataset text_table: {file}, line {table.line_num}: {error}") from error


def _of_jsonl(file: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    seen: set[str] = set()
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Fault(f"no JSON: {error}")
                continue
            if not isinstance(row, dict):
                yield Fault(f"a JSON {type(row).__name__}, not an object")
                continue
            seen.update(row)
            yield row
    if seen:
        _refuse_missing(file, columns, seen)


def _refuse_missing(file: Path, columns: tuple[str, ...], there: Any) -> None:
    for column in columns:
        if column not in there:
            raise ConfigError(f"dataset text_table: {file} has no column {column!r}: {did_you_mean(column, there)}")


def _classes(where: str, given: list[Any], names: tuple[str, ...]) -> tuple[Ints, tuple[str, ...], int]:
    """Labels [n] int64, class names, and how many classes: of whole numbers themselves, of names by their order.

    Raises ConfigError for a number that is not whole, or a name that is none of those given.
    """
    texts = ["" if each is None else str(each).strip() for each in given]
    present = {each for each in texts if each}
    numbers = all(each.isascii() and each.removeprefix("-").isdigit() for each in present)
    if not names and numbers:
        labels = np.array([int(each) if each else -1 for each in texts], np.int64)
        if labels.min(initial=-1) < -1:
            raise ConfigError(f"dataset text_table: {where}: label {labels.min()}; classes begin at 0 (-1: unlabelled)")
        return labels, (), int(labels.max(initial=-1)) + 1
    if not names:
        for each in sorted(present):
            if _is_number(each) and not each.lstrip("-").isdigit():
                raise ConfigError(
                    f"dataset text_table: {where}: label {each} is a number that is not whole; hard labels are "
                    "classes, whole numbers or names. A score goes by score=COLUMN: metrics take it, and no loss does"
                )
        names = tuple(sorted(present))
    for each in sorted(present - set(names)):
        raise ConfigError(f"dataset text_table: {where}: label {each!r} is none of classes={','.join(names)}")
    number_of = {name: number for number, name in enumerate(names)}
    return np.array([number_of.get(each, -1) for each in texts], np.int64), names, len(names)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _score(where: str, given: Any) -> float:
    if given is None or given == "":
        return math.nan
    try:
        score = float(given)
    except (TypeError, ValueError):
        score = math.inf
    if not math.isfinite(score):
        raise ConfigError(f"dataset text_table: {where}: {str(given)[:40]!r} is no number")
    return score
