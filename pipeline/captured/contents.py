"""`contents.json`: what a folder of captured soft targets holds; written last, in one step.

Whatever lies behind what it lists is of a capture that goes on, or was cut short: nobody reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.captured.index import ENTRY
from pipeline.captured.storage import Storage, capture_command, storage_of
from pipeline.whole_files import write_whole
from schemas.errors import ConfigError, DecodeError, EncodeError
from schemas.generation import Generation, Publisher, follows
from schemas.names import is_name

NAME = "contents.json"
FORMAT = 1
"""Another number is another form: refused."""
_DAMAGES = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    ConfigError,
    EncodeError,
)
"""What a list may raise that no capture has written."""


def file_name(teacher: str, number: int) -> str:
    """Name of a teacher's file, of those in a row from 0."""
    return f"{teacher}-{number:05d}.avro"


def index_name(teacher: str) -> str:
    """Name of the index of a teacher's orders."""
    return f"{teacher}.index"


def head_name(teacher: str, number: int) -> str:
    """Name of the file of a teacher's last layer, of those in a row from 0."""
    return f"{teacher}-{number:05d}.safetensors"


@dataclass(frozen=True, slots=True)
class CapturedHead:
    """A last layer, whose bytes are the file's."""

    num_bytes: int
    sha256: str
    """As the teacher's record has it."""


@dataclass(frozen=True, slots=True)
class CapturedFile:
    """One file, or as much of it as was whole when this was written."""

    num_bytes: int
    sha256: str
    """Of these bytes."""
    first: int
    """The lowest sequence in it."""
    last: int
    """The highest; first - 1 where it holds none."""


@dataclass(frozen=True, slots=True)
class CapturedTeacher:
    """The files of one teacher."""

    model_sha256: str
    """As the teacher's record has it."""
    header_bytes: int
    """Of each file, before its first block."""
    header_sha256: str
    """Of those bytes, which are the same in all of them."""
    index_sha256: str
    files: tuple[CapturedFile, ...]
    """One or more, without a gap: the first begins with sequence 0."""
    heads: tuple[CapturedHead, ...] = ()
    """Its last layers, in the order of the outputs that need them; () without the codec head."""
    publisher: Publisher | None = None
    """Which run publishes itself as its next generations; None: nobody did."""
    generations: tuple[Generation, ...] = ()
    """1, 2, 3, ... up to the highest one of which a label was captured."""

    @property
    def num_orders(self) -> int:
        """How many orders were captured: 0, 1, ... without a gap."""
        return self.files[-1].last + 1

    @property
    def index_bytes(self) -> int:
        """Of the index, as far as it is listed."""
        return self.num_orders * ENTRY.itemsize


@dataclass(frozen=True, slots=True)
class Contents:
    """What a folder holds."""

    stream: str
    stream_id: str
    manifest_sha256: str
    """Of the manifest's record."""
    num_orders: int
    """Of the whole stream."""
    codec: str
    """Avro's name."""
    max_file_bytes: int
    teachers: Mapping[str, CapturedTeacher] = field(default_factory=dict)
    """By name."""

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Read a folder's, or that of a URL; raises as `read_from`."""
        return cls.read_from(storage_of(folder))

    @classmethod
    def read_from(cls, storage: Storage) -> Self:
        """Read what lies somewhere.

        Raises:
            ConfigError: there is none, or it cannot be read.
            DataUnavailable: it cannot be read now.
            DecodeError: it is damaged, of another form, or names what lies outside of its folder.
        """
        try:
            raw = storage.read_whole(NAME)
        except FileNotFoundError:
            how = capture_command("STREAM", str(storage))
            raise ConfigError(f"{storage}: holds no captured soft targets (no {NAME}); store them with {how}") from None
        try:
            return cls._of(json.loads(raw))
        except _DAMAGES as error:
            reason = f"misses {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
            address = storage.address(NAME)
            raise DecodeError(address, f"is damaged ({reason}); bring back a whole copy, or capture anew") from error

    def write(self, folder: Path) -> None:
        """Replace the folder's; raises CannotWrite."""
        write_whole(folder / NAME, json.dumps(self._document(), indent=1) + "\n")

    def _document(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "format": FORMAT,
            "stream": self.stream,
            "stream_id": self.stream_id,
            "manifest_sha256": self.manifest_sha256,
            "num_orders": self.num_orders,
            "codec": self.codec,
            "max_file_bytes": self.max_file_bytes,
            "teachers": {name: _document_of(name, self.teachers[name]) for name in sorted(self.teachers)},
        }
        return body | {"sha256": _digest(body)}

    @classmethod
    def _of(cls, document: dict[str, Any]) -> Self:
        found = document["format"]
        if found != FORMAT:
            raise ValueError(f"it is of form {found!r}, {FORMAT} here: another version of Distillog wrote it")
        stream_id = _text(document["stream_id"])
        contents = cls(
            _text(document["stream"]),
            stream_id,
            _text(document["manifest_sha256"]),
            _count(document["num_orders"]),
            _text(document["codec"]),
            _count(document["max_file_bytes"]),
            {name: _teacher_of(name, stream_id, each) for name, each in document["teachers"].items()},
        )
        # Last: what is said of a name outside of the folder is more than that two sums differ.
        if _digest({key: value for key, value in document.items() if key != "sha256"}) != document["sha256"]:
            raise ValueError("it does not match its own SHA-256")
        return contents


def _document_of(name: str, teacher: CapturedTeacher) -> dict[str, Any]:
    heads = [
        {"file": head_name(name, number), "bytes": each.num_bytes, "sha256": each.sha256}
        for number, each in enumerate(teacher.heads)
    ]
    return (
        ({"heads": heads} if heads else {})
        | _document_of_lineage(teacher)
        | {
            "model_sha256": teacher.model_sha256,
            "num_orders": teacher.num_orders,
            "header_bytes": teacher.header_bytes,
            "header_sha256": teacher.header_sha256,
            "index": {"file": index_name(name), "bytes": teacher.index_bytes, "sha256": teacher.index_sha256},
            "files": [
                {
                    "file": file_name(name, number),
                    "bytes": each.num_bytes,
                    "sha256": each.sha256,
                    "from": each.first,
                    "to": each.last,
                }
                for number, each in enumerate(teacher.files)
            ],
        }
    )


def _document_of_lineage(teacher: CapturedTeacher) -> dict[str, Any]:
    by = teacher.publisher
    if by is None:
        return {}
    names = ("number", "sha256", "weights_sha256", "model", "step")
    return {
        "publisher": {"run": by.run, "run_id": by.run_id, "every": by.every},
        "generations": [{name: getattr(each, name) for name in names} for each in teacher.generations],
    }


def _lineage_of(name: str, stream_id: str, document: dict[str, Any]) -> tuple[Publisher | None, tuple[Generation, ...]]:
    """Undo `_document_of_lineage`."""
    said = document.get("publisher")
    if said is None:
        return None, ()
    by = Publisher(stream_id, name, _text(said["run"]), _text(said["run_id"]), _count(said["every"]))
    by.encode()  # refuses what no record could say
    found: list[Generation] = []
    for each in document["generations"]:
        number = _count(each["number"])
        sums = _text(each["sha256"]), _text(each["weights_sha256"])
        made = Generation(
            stream_id,
            name,
            number,
            *sums,
            _text(each["model"]),
            by.run_id,
            _count(each["step"]),
            number * by.every,
        )
        if not follows(by, len(found), made):
            raise ValueError(f"generation {number} is listed behind {len(found)}")
        made.encode()
        found.append(made)
    return by, tuple(found)


def _teacher_of(name: str, stream_id: str, document: dict[str, Any]) -> CapturedTeacher:
    if not is_name(name):
        raise ValueError(f"{name!r} is no name of a teacher")
    files: list[CapturedFile] = []
    following = 0
    for number, each in enumerate(document["files"]):
        # No name is taken from here: whoever wrote this could lead a reader to any file of the machine.
        _named(each["file"], file_name(name, number))
        file = CapturedFile(_count(each["bytes"]), _text(each["sha256"]), _count(each["from"]), _whole(each["to"]))
        least = -1 if number == 0 else 0
        if file.first != following or file.last - file.first < least:
            raise ValueError(f"{each['file']} holds {file.first} to {file.last}, where {following} follows")
        following = file.last + 1
        files.append(file)
    if not files:
        raise ValueError(f"teacher {name!r} has no file")
    heads = []
    for number, each in enumerate(document.get("heads", ())):
        _named(each["file"], head_name(name, number))
        heads.append(CapturedHead(_count(each["bytes"]), str(each["sha256"])))
    index = document["index"]
    _named(index["file"], index_name(name))
    return CapturedTeacher(
        _text(document["model_sha256"]),
        _count(document["header_bytes"]),
        _text(document["header_sha256"]),
        _text(index["sha256"]),
        tuple(files),
        tuple(heads),
        *_lineage_of(name, stream_id, document),
    )


def _named(found: object, name: str) -> None:
    if found != name:
        raise ValueError(f"it names {found!r}, where {name} lies in its own folder")


def _count(value: object) -> int:
    if _whole(value) < 0:
        raise ValueError(f"{value!r} is no number of bytes or orders")
    return _whole(value)


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no number of bytes or orders")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
