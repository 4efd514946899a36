"""Writes one teacher's captured files, and goes on where a writer before it ended, however that ended."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.captured.container import FRAME_BYTES, SYNC_BYTES, BlockCodec, block, block_bytes, unblock
from pipeline.captured.contents import CapturedFile, CapturedHead, CapturedTeacher, file_name, index_name
from pipeline.captured.header import captured_record, split_record
from pipeline.captured.index import ENTRY, Place
from pipeline.user_files import refuse_irregular
from pipeline.whole_files import writing
from schemas.errors import CannotWrite, ConfigError, DecodeError, EncodeError, ManifestMismatch
from schemas.records import Lineage, SoftTargets

_CHUNK = 1 << 20
_AGAIN = "bring back a whole copy, or remove the folder and capture it again"


@dataclass(frozen=True, slots=True, eq=False)
class FileForm:
    """What all files of a teacher have in common."""

    model_sha256: str
    header: bytes
    record_header: bytes
    """The 10 bytes before the body of each of the teacher's records."""
    codec: BlockCodec
    max_bytes: int
    """A file is full with the block that would not fit any more; one block fits always."""
    heads: tuple[CapturedHead, ...] = ()
    """The teacher's last layers, whose files are there."""


class TeacherWriter:
    """Appends a teacher's orders in sequence; used by one thread.

    A block is written before its entry in the index, and both before the list (`entry`) says anything of them. So the
    list tells what is whole, and behind it are whole blocks of the last file alone, then at most a part of one: what a
    writer finds when it goes on is read once, and cut back to its last whole block.

    Args:
        folder: where the files are.
        name: the teacher's.
        form: of its files.
        lineage: gives the teacher through its generations, as far as they are known when it is called.
        listed: what is there by the list; None: nothing is.
        on_full: called when a file is full, before the next one is made, for the list to be written.

    Raises:
        DecodeError: what is listed is damaged.
        ConfigError: it was written by another version, with other headers.
        CannotWrite: the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        form: FileForm,
        lineage: Callable[[], Lineage],
        listed: CapturedTeacher | None,
        on_full: Callable[[], None],
    ) -> None:
        self._folder, self._name, self._form, self._lineage, self._on_full = folder, name, form, lineage, on_full
        self._newest = len(listed.generations) if listed else 0
        files = listed.files if listed else ()
        self._full = list(files)
        if files and not (folder / file_name(name, len(files))).exists():
            self._full.pop()  # there is none behind it: it has room, or is full and the next one was not made yet
        if listed and listed.header_sha256 != hashlib.sha256(form.header).hexdigest():
            raise ConfigError(
                f"{folder}: teacher {name!r} was captured by another version of Distillog, with other headers; capture "
                "into another folder"
            )
        self._refuse_changed()
        self._first = self._full[-1].last + 1 if self._full else 0
        self._next = self._first
        self._sum = hashlib.sha256()
        self._bytes = 0
        with ExitStack() as undo:
            self._index = self._opened(folder / index_name(name))
            undo.callback(os.close, self._index)
            self._file = self._opened(self._path)
            undo.callback(os.close, self._file)
            self._index_sum = self._sum_of_index()
            self._go_on(listed)
            undo.pop_all()

    @property
    def next_sequence(self) -> int:
        """The order that is appended next."""
        return self._next

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(each.num_bytes for each in self._full) + self._bytes

    @property
    def _path(self) -> Path:
        return self._folder / file_name(self._name, len(self._full))

    def append(
        self, sequence: int, partition: int, offset: int, value: bytes, address: str, generation: int = 0
    ) -> None:
        """Append an order's record, the one that comes next, in Kafka's bytes; raises as `pack` and `add`."""
        self.add(sequence, self.pack(partition, offset, value, address), generation)

    def pack(self, partition: int, offset: int, value: bytes, address: str) -> bytes:
        """Return the block of an order's record; may be called by any thread.

        Raises:
            ManifestMismatch: it is written in another version than the stream pins, and is not to be changed.
        """
        header = self._form.record_header
        if value[: len(header)] != header:
            raise ManifestMismatch(
                f"{address}: is written in schema {value[2 : len(header)].hex()}, the manifest pins "
                f"{header[2:].hex()}; a file holds one version, and labels are never encoded anew"
            )
        return block(captured_record(partition, offset, value[len(header) :]), self._form.codec, self._sync)

    def add(self, sequence: int, data: bytes, generation: int = 0) -> None:
        """Append the block of the order that comes next, labelled by a generation; raises CannotWrite, and then it was
        not."""
        if sequence != self._next:
            raise EncodeError(f"{self._path}: order {sequence} is added, where {self._next} follows")
        if self._next > self._first and self._bytes + len(data) > self._form.max_bytes:
            self._begin_next_file()
        with writing(self._path):
            _write(self._file, data, self._bytes)
            _write(self._index, self._entry_of(data), self._next * ENTRY.itemsize)
        self._take(data)  # only now: whatever the disk refused is not counted, and not listed
        self._newest = max(self._newest, generation)

    def entry(self) -> CapturedTeacher:
        """Return what is there now, once it is on the disk; raises CannotWrite."""
        with writing(self._path):
            for file in (self._file, self._index):
                os.fsync(file)
        header, lineage = self._form.header, self._lineage()
        return CapturedTeacher(
            self._form.model_sha256,
            len(header),
            hashlib.sha256(header).hexdigest(),
            self._index_sum.hexdigest(),
            # A later file without an order is not listed: the next writer finds it by its name.
            (*self._full, self._present()) if self._next > self._first or not self._full else tuple(self._full),
            self._form.heads,
            lineage.publisher,
            # No more than labels name: a list is of what is there, whoever captured it and when.
            lineage.generations[: self._newest],
        )

    def close(self) -> None:
        """Close the files; what was not said by `entry` is found by the next writer."""
        os.close(self._file)
        os.close(self._index)

    @property
    def _sync(self) -> bytes:
        return self._form.header[-SYNC_BYTES:]

    def _present(self) -> CapturedFile:
        return CapturedFile(self._bytes, self._sum.hexdigest(), self._first, self._next - 1)

    def _entry_of(self, data: bytes) -> bytes:
        """Return the entry in the index of a block at the end of what was counted."""
        return Place.of(len(self._full), self._bytes, data).encode()

    def _take(self, data: bytes) -> bytes:
        """Count a block that lies at the end of what was counted, and return its entry in the index."""
        entry = self._entry_of(data)
        self._index_sum.update(entry)
        self._sum.update(data)
        self._bytes += len(data)
        self._next += 1
        return entry

    def _begin_next_file(self) -> None:
        self._on_full()  # lists this one as it is
        path = self._folder / file_name(self._name, len(self._full) + 1)
        following = self._opened(path)
        try:
            with writing(path):
                _begin(following, self._form.header)
        except BaseException:
            os.close(following)
            raise
        # From here on nothing is asked of the disk.
        self._full.append(self._present())
        self._first, before, self._file = self._next, self._file, following
        self._count_header()
        os.close(before)

    def _count_header(self) -> None:
        self._sum = hashlib.sha256(self._form.header)
        self._bytes = len(self._form.header)

    def _go_on(self, listed: CapturedTeacher | None) -> None:
        """Count what the file holds, and cut off what is no whole block, or of no order that follows.

        Nothing is changed before all that is listed was found whole, nor any byte of it then: a run may be reading it.
        """
        known = listed.files[len(self._full)] if listed and len(listed.files) > len(self._full) else None
        header, place = self._form.header, self._first * ENTRY.itemsize
        start = _read(self._file, len(header), 0)
        if not listed:
            self._refuse_strange(start)
        if not known and start != header:  # it was begun, and not listed yet
            with writing(self._path):
                _begin(self._file, header)
            self._count_header()
        else:
            self._sum.update(start)
            self._bytes = len(start)
        entries = bytearray()
        while known and self._bytes < known.num_bytes and (data := self._read_block()):
            entries += self._take(data)
        if known and (start != header or self._present() != known):
            raise DecodeError(str(self._path), f"is damaged: its SHA-256 is not the listed one; {_AGAIN}")
        if listed and known and self._index_sum.hexdigest() != listed.index_sha256:
            index = self._folder / index_name(self._name)
            raise DecodeError(str(index), f"is damaged: its SHA-256 is not the listed one; {_AGAIN}")
        while (data := self._read_block()) and self._indexed(data) and self._follows(data):
            entries += self._take(data)
        with writing(self._path):
            os.ftruncate(self._file, self._bytes)
            _write(self._index, entries, place)
            os.ftruncate(self._index, place + len(entries))

    def _refuse_strange(self, start: bytes) -> None:
        """Raise CannotWrite where what lies there of a teacher that is not listed is none that a capture has begun."""
        strange = self._path if not self._form.header.startswith(start.rstrip(b"\0")) else None
        if not start and os.fstat(self._index).st_size:
            strange = self._folder / index_name(self._name)  # entries are written behind their blocks
        if strange:
            raise CannotWrite(
                f"{strange}: lies there, is not listed, and no capture of teacher {self._name!r} with these records of "
                "manifest and teacher has begun it; move it away"
            )

    def _read_block(self) -> bytes:
        """Read what seems to be a whole block at the end of what was counted; empty: there is none."""
        try:
            size = block_bytes(_read(self._file, FRAME_BYTES, self._bytes))
        except ValueError:
            return b""
        if self._bytes + size > os.fstat(self._file).st_size:
            return b""
        return _read(self._file, size, self._bytes)

    def _indexed(self, data: bytes) -> bool:
        """Whether the index has this very block, by its checksum: a power cut may leave anything behind the list."""
        return _read(self._index, ENTRY.itemsize, self._next * ENTRY.itemsize) == self._entry_of(data)

    def _follows(self, data: bytes) -> bool:
        """Whether a block that is not listed is the next order's; if so, its generation is counted."""
        try:
            _, _, body = split_record(unblock(data, self._form.codec, self._sync))
            found = SoftTargets.decode(self._form.record_header + body, str(self._path))
        except (ValueError, DecodeError):
            return False
        if found.sequence != self._next:
            return False
        self._newest = max(self._newest, found.generation)
        return True

    def _opened(self, path: Path) -> int:
        refuse_irregular(path, CannotWrite)
        if path.is_symlink():
            raise CannotWrite(f"{path}: is a link, and captured files are written into their own folder; remove it")
        with writing(path):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)

    def _refuse_changed(self) -> None:
        """Raise DecodeError where a file that is full has not its size."""
        for number, each in enumerate(self._full):
            path = self._folder / file_name(self._name, number)
            there = path.stat().st_size if path.is_file() else 0
            if there > each.num_bytes and number + 1 == len(self._full):
                behind = sorted(one.name for one in self._folder.glob(f"{self._name}-?????.avro"))
                raise DecodeError(
                    str(path),
                    f"has {there} bytes, {each.num_bytes} are listed, and files follow that are not: the list is older "
                    f"than they are; bring back the newer one, or remove {', '.join(behind[number + 1 :])}, and the "
                    "capture goes on behind what is listed",
                )
            if there != each.num_bytes:
                raise DecodeError(str(path), f"has {there} bytes, {each.num_bytes} are listed; {_AGAIN}")

    def _sum_of_index(self) -> hashlib._Hash:
        """Add up the entries of the orders in full files; those of the last file are made of its blocks again."""
        needed, at = self._first * ENTRY.itemsize, 0
        total = hashlib.sha256()
        while at < needed and (chunk := _read(self._index, min(_CHUNK, needed - at), at)):
            total.update(chunk)
            at += len(chunk)
        if at < needed:
            path = self._folder / index_name(self._name)
            raise DecodeError(str(path), f"is cut: {at} bytes of {needed} are there; {_AGAIN}")
        return total


def _begin(file: int, header: bytes) -> None:
    os.ftruncate(file, 0)
    _write(file, header, 0)


def _read(file: int, size: int, at: int) -> bytes:
    """Read so many bytes from a place on, fewer at the end."""
    parts: list[bytes] = []
    while size and (part := os.pread(file, size, at)):
        parts.append(part)
        size, at = size - len(part), at + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _write(file: int, data: bytes | bytearray, at: int) -> None:
    """Write all of it to a place, without a buffer: what a process wrote is there although it is killed."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(file, rest, at)
        rest, at = rest[count:], at + count
