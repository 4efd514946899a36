"""Reads a folder of captured soft targets: opened by its list, each order by its place, checked as it is read."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.captured.container import block_codec, unblock
from pipeline.captured.contents import CapturedTeacher, Contents, file_name, head_name, index_name
from pipeline.captured.header import FileHeader, split_record
from pipeline.captured.index import ENTRY, Place
from pipeline.captured.storage import Storage, StoredFile, capture_command, storage_of
from pipeline.sequence import Sequence
from schemas.errors import DecodeError, StreamNotFound
from schemas.records import Lineage, Manifest, Teacher

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
        ConfigError: a codec that this machine does not have, or a file that is not to be read.
        DataUnavailable: the files cannot be read now.
    """

    def __init__(self, storage: Storage, contents: Contents, name: str) -> None:
        self._storage, self._name = storage, name
        self._entry = entry = contents.teachers[name]
        self._open: tuple[int, StoredFile] | None = None
        """Number of the file that was read last."""
        self._index: StoredFile | None = None
        sizes = {file_name(name, number): each.num_bytes for number, each in enumerate(entry.files)}
        sizes |= {head_name(name, number): each.num_bytes for number, each in enumerate(entry.heads)}
        _refuse_short(storage, sizes | {index_name(name): entry.index_bytes})
        address = storage.address(file_name(name, 0))
        try:
            header = FileHeader.decode(self._begin(0), contents.stream, address)
            self.manifest: Manifest = header.manifest
            """Of the stream."""
            self.teacher: Teacher = header.teacher
            self.lineage = Lineage(self.teacher, entry.publisher, entry.generations)
            """The teacher through its generations, those by which these labels are among them."""
            self._record_header, self._sync = header.record_header, header.sync
            self._codec = block_codec(header.codec)
            self._sequence = Sequence.of(self.manifest)
            self._refuse_other(contents, address)
        except BaseException:
            self.close()
            raise

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
        place = self._place(sequence)
        address = f"{self._address(place.file)}@{place.offset}"
        raw = self._file(place.file).read(place.num_bytes, place.offset)
        if len(raw) != place.num_bytes or zlib.crc32(raw) != place.crc32:
            raise DecodeError(address, f"is damaged: order {sequence} is not what its checksum says; {_AGAIN}", raw)
        try:
            partition, offset, body = split_record(unblock(raw, self._codec, self._sync))
        except ValueError as error:
            raise DecodeError(address, f"is damaged: {error}; {_AGAIN}", raw) from error
        if partition != self._sequence.partition(sequence):
            raise DecodeError(address, f"holds a record of partition {partition}, where order {sequence} is none", raw)
        return CapturedOrder(partition, offset, self._record_header + body, address)

    def heads(self) -> dict[str, bytes]:
        """Return SHA-256 -> bytes of the last layers that the labels need; {} without the codec head.

        Raises:
            DecodeError: one is missing or damaged.
            DataUnavailable: it cannot be read now.
        """
        found: dict[str, bytes] = {}
        for number, each in enumerate(self._entry.heads):
            name = head_name(self._name, number)
            file = self._opened(name, each.num_bytes)
            try:
                raw = file.read(each.num_bytes, 0)
            finally:
                file.close()
            if hashlib.sha256(raw).hexdigest() != each.sha256:
                address = self._storage.address(name)
                raise DecodeError(address, f"is damaged: its SHA-256 is not the listed one; {_AGAIN}")
            found[each.sha256] = raw
        if missing := [sha256 for sha256 in self.teacher.heads if sha256 not in found]:
            address = self._storage.address(head_name(self._name, 0))
            raise DecodeError(address, f"the last layer {missing[0][:12]} is not listed; {_AGAIN}")
        return found

    def close(self) -> None:
        """Close the files that are open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
        if self._index is not None:
            self._index.close()
            self._index = None

    def verify(self, progress: Callable[[int], object]) -> None:
        """Hold every byte that is listed against its SHA-256; `progress` is told of each MiB read, in bytes.

        Raises:
            DecodeError: names the first file that differs.
            ConfigError, DataUnavailable: it cannot be read, or not now.
        """
        listed = [(file_name(self._name, n), each.num_bytes, each.sha256) for n, each in enumerate(self._entry.files)]
        listed += [(head_name(self._name, n), each.num_bytes, each.sha256) for n, each in enumerate(self._entry.heads)]
        listed.append((index_name(self._name), self._entry.index_bytes, self._entry.index_sha256))
        for name, num_bytes, sha256 in listed:
            found, at = hashlib.sha256(), 0
            file = self._opened(name, num_bytes)
            try:
                while at < num_bytes and (chunk := file.read(min(_CHUNK, num_bytes - at), at)):
                    found.update(chunk)
                    at += len(chunk)
                    progress(len(chunk))
            finally:
                file.close()
            if found.hexdigest() != sha256:
                address = self._storage.address(name)
                raise DecodeError(address, f"is damaged: its SHA-256 is not the listed one; {_AGAIN}")

    def _place(self, sequence: int) -> Place:
        """Return where an order's block lies, which is within what is listed."""
        name = index_name(self._name)
        if self._index is None:
            self._index = self._opened(name, self._entry.index_bytes)
        at = sequence * ENTRY.itemsize
        raw = self._index.read(ENTRY.itemsize, at)
        address = f"{self._storage.address(name)}@{at}"
        if len(raw) < ENTRY.itemsize:
            raise DecodeError(address, f"is cut: order {sequence} has no entry; {_AGAIN}", raw)
        place, files = Place.decode(raw), self._entry.files
        if place.file >= len(files) or place.offset + place.num_bytes > files[place.file].num_bytes:
            raise DecodeError(address, f"is damaged: order {sequence} is nowhere; {_AGAIN}", raw)
        return place

    def _file(self, number: int) -> StoredFile:
        if self._open is None or self._open[0] != number:
            self._begin(number)
        assert self._open is not None
        return self._open[1]

    def _begin(self, number: int) -> bytes:
        """Open a file in the place of the one before, and return its header, held against what the list says."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
        entry = self._entry
        listed = entry.files[number]
        file = self._opened(file_name(self._name, number), listed.num_bytes)
        try:
            raw = file.read(min(entry.header_bytes, listed.num_bytes), 0)
            if hashlib.sha256(raw).hexdigest() != entry.header_sha256:
                raise DecodeError(
                    f"{self._address(number)}@0", f"is damaged: its header is not what the list says; {_AGAIN}", raw
                )
        except BaseException:
            file.close()
            raise
        self._open = number, file
        return raw

    def _opened(self, name: str, num_bytes: int) -> StoredFile:
        try:
            return self._storage.open(name, num_bytes)
        except FileNotFoundError:
            raise DecodeError(self._storage.address(name), f"is missing; {_AGAIN}") from None

    def _address(self, number: int) -> str:
        return self._storage.address(file_name(self._name, number))

    def _refuse_other(self, contents: Contents, address: str) -> None:
        """Raise DecodeError where a file is another's than the list says."""
        manifest_sha256 = hashlib.sha256(self.manifest.encode()).hexdigest()
        found = (self.manifest.stream, self.manifest.stream_id, manifest_sha256, self._sequence.num_orders)
        listed = (contents.stream, contents.stream_id, contents.manifest_sha256, contents.num_orders)
        of_teacher = (self.teacher.name, self.teacher.sha256)
        if found != listed or of_teacher != (self._name, self._entry.model_sha256):
            raise DecodeError(address, f"is of another stream or teacher than its list says; {_AGAIN}")


def _refuse_short(storage: Storage, listed: Mapping[str, int]) -> None:
    """Raise DecodeError for files that are missing, or have fewer bytes than are listed; ConfigError as `Storage`."""
    try:
        sizes = storage.sizes(listed)
    except FileNotFoundError:
        sizes = {}
    for name, num_bytes in listed.items():
        there = sizes.get(name)
        if there is None:
            raise DecodeError(storage.address(name), f"is missing; {_AGAIN}")
        if there < num_bytes:
            reason = f"is cut: {there} bytes of the {num_bytes} that are listed; {_AGAIN}"
            raise DecodeError(storage.address(name), reason)


class CapturedFolder:
    """A folder of captured soft targets, as its list has it.

    Args:
        folder: a path, or as text a URL such as `s3://bucket/folder`, too.

    Raises:
        ConfigError, DataUnavailable, DecodeError: as `Contents.read_from`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = folder
        self._storage = storage_of(folder)
        self.contents = Contents.read_from(self._storage)

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
                f"{capture_command(self.contents.stream, self.path, f' --teacher {name}')}"
            )
        return TeacherFiles(self._storage, self.contents, name)

    def verify(self, progress: Callable[[int], object] = lambda num_bytes: None) -> None:
        """Hold every byte that is listed against its SHA-256, as `TeacherFiles.verify`."""
        for name in self.contents.teachers:
            files = self.teacher(name)
            try:
                files.verify(progress)
            finally:
                files.close()


def listed_bytes(teacher: CapturedTeacher) -> int:
    """Return the bytes of a teacher's files, and of their index."""
    of_heads = sum(each.num_bytes for each in teacher.heads)
    return sum(each.num_bytes for each in teacher.files) + of_heads + teacher.index_bytes
