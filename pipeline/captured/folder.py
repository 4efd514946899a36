"""Reads a folder of captured soft targets: opened by its list, each order by its place, checked as it is read."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.captured.container import block_codec, unblock
from pipeline.captured.contents import CapturedTeacher, Contents, file_name, index_name
from pipeline.captured.header import FileHeader, split_record
from pipeline.captured.index import ENTRY, map_index, place_of
from pipeline.sequence import Sequence
from pipeline.user_files import refuse_irregular
from schemas.errors import ConfigError, DataUnavailable, DecodeError, StreamNotFound
from schemas.records import Manifest, Teacher

_CHUNK = 1 << 20
_AGAIN = "bring back a whole copy, or remove the folder and capture it again"


@dataclass(frozen=True, slots=True, eq=False)
class CapturedOrder:
    """One order's soft targets, and where they lay."""

    partition: int
    offset: int
    """In its partition of the teacher's topic."""
    value: bytes
    """The record's bytes, as Kafka had them."""
    address: str
    """Where they lie here: `FILE@BYTE`."""


class TeacherFiles:
    """The captured files of one teacher; used by one thread.

    Opening them reads a header alone, and looks at the files' sizes. An order is held against the checksum of its block
    when it is read, and a file's header when its first order is; all bytes of all files by `CapturedFolder.verify`.

    Raises:
        DecodeError: a file is missing or cut, or its header is not what the list says.
        ManifestMismatch, NeedsNewer: a newer Distillog made the stream, or captured it.
        ConfigError: a codec that this machine does not have.
    """

    def __init__(self, folder: Path, contents: Contents, name: str) -> None:
        self._folder, self._name = folder, name
        self._entry = entry = contents.teachers[name]
        self._open: tuple[int, int] | None = None
        """Number and descriptor of the file that was read last."""
        sizes = {file_name(name, number): each.num_bytes for number, each in enumerate(entry.files)}
        for each, num_bytes in (sizes | {index_name(name): entry.index_bytes}).items():
            _refuse_short(folder / each, num_bytes)
        path = folder / file_name(name, 0)
        header = FileHeader.decode(self._header(path, self._descriptor(0, path)), contents.stream, str(path))
        self.manifest: Manifest = header.manifest
        """Of the stream."""
        self.teacher: Teacher = header.teacher
        self._record_header, self._sync = header.record_header, header.sync
        self._codec = block_codec(header.codec)
        self._sequence = Sequence.of(self.manifest)
        self._refuse_other(contents, path)
        self._index = map_index(folder / index_name(name), entry.num_orders)

    @property
    def num_orders(self) -> int:
        """How many orders there are: 0, 1, ... without a gap."""
        return self._entry.num_orders

    def read(self, sequence: int) -> CapturedOrder:
        """Return an order's soft targets.

        Raises:
            IndexError: it is not among those captured.
            DecodeError: the file is damaged there.
            DataUnavailable: it cannot be read now.
        """
        if not 0 <= sequence < self.num_orders:
            raise IndexError(f"order {sequence} of {self.num_orders} captured ones")
        place = place_of(self._index, sequence)
        files = self._entry.files
        if place.file >= len(files) or place.offset + place.num_bytes > files[place.file].num_bytes:
            index = self._folder / index_name(self._name)
            raise DecodeError(
                f"{index}@{sequence * ENTRY.itemsize}", f"is damaged: order {sequence} is nowhere; {_AGAIN}"
            )
        path = self._folder / file_name(self._name, place.file)
        address = f"{path}@{place.offset}"
        try:
            raw = os.pread(self._descriptor(place.file, path), place.num_bytes, place.offset)
        except OSError as error:
            raise DataUnavailable(f"{path}: cannot be read now ({error.strerror}); bring it back") from error
        if len(raw) != place.num_bytes or zlib.crc32(raw) != place.crc32:
            raise DecodeError(address, f"is damaged: order {sequence} is not what its checksum says; {_AGAIN}", raw)
        try:
            partition, offset, body = split_record(unblock(raw, self._codec, self._sync))
        except ValueError as error:
            raise DecodeError(address, f"is damaged: {error}; {_AGAIN}", raw) from error
        if partition != self._sequence.partition(sequence):
            raise DecodeError(address, f"holds a record of partition {partition}, where order {sequence} is none", raw)
        return CapturedOrder(partition, offset, self._record_header + body, address)

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def verify(self, progress: Callable[[int], object]) -> None:
        """Hold every byte that is listed against its SHA-256; `progress` is told of each MiB read, in bytes.

        Raises:
            DecodeError: names the first file that differs.
        """
        listed = [(file_name(self._name, n), each.num_bytes, each.sha256) for n, each in enumerate(self._entry.files)]
        listed.append((index_name(self._name), self._entry.index_bytes, self._entry.index_sha256))
        for name, num_bytes, sha256 in listed:
            found = hashlib.sha256()
            with (self._folder / name).open("rb") as file:
                while num_bytes and (chunk := file.read(min(_CHUNK, num_bytes))):
                    found.update(chunk)
                    num_bytes -= len(chunk)
                    progress(len(chunk))
            if found.hexdigest() != sha256:
                raise DecodeError(str(self._folder / name), f"is damaged: its SHA-256 is not the listed one; {_AGAIN}")

    def _descriptor(self, number: int, path: Path) -> int:
        if self._open is not None and self._open[0] == number:
            return self._open[1]
        self.close()
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open = number, descriptor
        self._header(path, descriptor)
        return descriptor

    def _header(self, path: Path, descriptor: int) -> bytes:
        """Read a file's header, and hold it against what the list says."""
        entry = self._entry
        raw = os.pread(descriptor, min(entry.header_bytes, entry.files[0].num_bytes), 0)
        if hashlib.sha256(raw).hexdigest() != entry.header_sha256:
            raise DecodeError(f"{path}@0", f"is damaged: its header is not what the list says; {_AGAIN}", raw)
        return raw

    def _refuse_other(self, contents: Contents, path: Path) -> None:
        """Raise DecodeError where a file is another's than the list says."""
        manifest_sha256 = hashlib.sha256(self.manifest.encode()).hexdigest()
        found = (self.manifest.stream_id, manifest_sha256, self.teacher.name, self.teacher.sha256)
        if found != (contents.stream_id, contents.manifest_sha256, self._name, self._entry.model_sha256):
            raise DecodeError(str(path), f"is of another stream or teacher than its list says; {_AGAIN}")


def _refuse_short(path: Path, num_bytes: int) -> None:
    refuse_irregular(path, ConfigError)
    try:
        there = path.stat().st_size
    except FileNotFoundError:
        raise DecodeError(str(path), f"is missing; {_AGAIN}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if there < num_bytes:
        raise DecodeError(str(path), f"is cut: {there} bytes of the {num_bytes} that are listed; {_AGAIN}")


class CapturedFolder:
    """A folder of captured soft targets, as its list has it.

    Raises:
        ConfigError, DecodeError: as `Contents.read`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.contents = Contents.read(folder)

    def teacher(self, name: str) -> TeacherFiles:
        """Open the files of a teacher.

        Raises:
            StreamNotFound: it was not captured.
            DecodeError, ManifestMismatch, ConfigError: as `TeacherFiles`.
        """
        if name not in self.contents.teachers:
            there = ", ".join(self.contents.teachers) or "none"
            raise StreamNotFound(
                f"{self.path}: holds no soft targets of teacher {name!r} (there: {there}); add them with "
                f"`distillog capture {self.contents.stream} {self.path} --teacher {name}`"
            )
        return TeacherFiles(self.path, self.contents, name)

    def verify(self, progress: Callable[[int], object] = lambda num_bytes: None) -> None:
        """Hold every byte that is listed against its SHA-256, as `TeacherFiles.verify`."""
        for name in self.contents.teachers:
            self.teacher(name).verify(progress)


def listed_bytes(teacher: CapturedTeacher) -> int:
    """Return the bytes of a teacher's files, and of their index."""
    return sum(each.num_bytes for each in teacher.files) + teacher.index_bytes
