"""A folder that soft targets are captured into: locked, of one stream, and listed as it grows."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.captured.container import block_codec
from pipeline.captured.contents import NAME, CapturedHead, Contents, head_name
from pipeline.captured.header import file_header
from pipeline.captured.writer import FileForm, TeacherWriter
from pipeline.sequence import Sequence as OrderSequence
from pipeline.whole_files import replace_file, writing
from schemas.avro import REGISTRY
from schemas.errors import CannotWrite, ConfigError, StreamConflict
from schemas.records import Lineage, Manifest, Teacher

LOCK = "lock"
_OURS = {LOCK, f".new-{NAME}"}
"""What may lie in a folder before anything is listed there."""


@dataclass(frozen=True, slots=True)
class CaptureForm:
    """How files are written; None: as the folder has it, else as below."""

    codec: str | None = None
    """Avro's name; null."""
    max_file_bytes: int | None = None
    """256 MiB."""


NO_LINEAGES: Mapping[str, Lineage] = {}
"""All teachers stay what their records say."""
DEFAULT_CODEC = "null"
"""Soft targets hardly get smaller: float16 to seven tenths, and packing them takes longer than reading them."""
DEFAULT_FILE_BYTES = 256 << 20


class CaptureFolder:
    """Writers for some teachers of a stream, and the list of what they wrote. Use as a context manager.

    `heads` gives SHA-256 -> bytes of the last layers that a teacher's labels need; it is asked where these are missing.
    `lineages` are of teachers that move, by name, as far as they are known.

    Raises:
        CannotWrite: another capture is under way there, or the disk refuses.
        StreamConflict: it is of another stream, or has another teacher of that name.
        ConfigError: other files lie there, or it is captured in another form; or no such codec.
        DecodeError: what is there is damaged.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        teachers: Sequence[Teacher],
        form: CaptureForm,
        heads: Callable[[Teacher], Mapping[str, bytes]] = lambda teacher: {},
        lineages: Mapping[str, Lineage] = NO_LINEAGES,
    ) -> None:
        self._folder = folder
        self._heads = heads
        self.writers: dict[str, TeacherWriter] = {}
        """By teacher."""
        self.lineages = {each.name: lineages.get(each.name) or Lineage(each) for each in teachers}
        """By teacher: to be replaced before a label is appended of a generation that is not in it."""
        with ExitStack() as stack:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            stack.callback(os.close, self._lock())
            self._contents = self._opened(manifest, form)
            # The stream and the form are listed before the first file is there: a capture that is cut short goes on.
            self._contents.write(folder)
            for name, each in self.lineages.items():
                self.writers[name] = self._writer(manifest, each.teacher)
                stack.callback(self.writers[name].close)
            self.save()
            self._opened_here = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._opened_here.close()

    def save(self) -> None:
        """List what was written until now; raises CannotWrite."""
        entries = {name: writer.entry() for name, writer in self.writers.items()}
        contents = replace(self._contents, teachers={**self._contents.teachers, **entries})
        if contents != self._contents:
            self._contents = contents
            contents.write(self._folder)

    def _lock(self) -> int:
        path = self._folder / LOCK
        with writing(path):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise CannotWrite(f"{self._folder}: another capture is under way there; wait for its end") from None
        return lock

    def _opened(self, manifest: Manifest, form: CaptureForm) -> Contents:
        """Return what is listed there for this stream and in this form, or the list of nothing."""
        manifest_sha256 = hashlib.sha256(manifest.encode()).hexdigest()
        if not (self._folder / NAME).exists():
            others = sorted(each.name for each in self._folder.iterdir() if each.name not in _OURS)
            if others:
                raise ConfigError(
                    f"{self._folder}: holds other files ({others[0]}) and no {NAME}; give an empty folder"
                )
            return Contents(
                manifest.stream,
                manifest.stream_id,
                manifest_sha256,
                OrderSequence.of(manifest).num_orders,
                form.codec or DEFAULT_CODEC,
                form.max_file_bytes or DEFAULT_FILE_BYTES,
            )
        there = Contents.read(self._folder)
        if (there.stream, there.stream_id) != (manifest.stream, manifest.stream_id):
            raise StreamConflict(
                f"{self._folder}: is captured from stream {there.stream!r} ({there.stream_id}), and this is "
                f"{manifest.stream!r} ({manifest.stream_id}); give another folder"
            )
        if there.manifest_sha256 != manifest_sha256:
            raise StreamConflict(f"{self._folder}: is captured from a stream of another manifest; give another folder")
        asked = (form.codec or there.codec, form.max_file_bytes or there.max_file_bytes)
        if asked != (there.codec, there.max_file_bytes):
            raise ConfigError(
                f"{self._folder}: is captured with --codec {there.codec} --max-file-size {there.max_file_bytes}; go on "
                "with these, or give another folder"
            )
        return there

    def _written_heads(self, teacher: Teacher) -> tuple[CapturedHead, ...]:
        """Write the last layers that are not there yet, and return what is."""
        layers: Mapping[str, bytes] | None = None
        found = []
        for number, sha256 in enumerate(teacher.heads):
            path = self._folder / head_name(teacher.name, number)
            there = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(there).hexdigest() != sha256:
                layers = layers or self._heads(teacher)
                there = layers[sha256]
                replace_file(path, partial(_write, data=there))
            found.append(CapturedHead(len(there), sha256))
        return tuple(found)

    def _writer(self, manifest: Manifest, teacher: Teacher) -> TeacherWriter:
        listed = self._contents.teachers.get(teacher.name)
        if listed and listed.model_sha256 != teacher.sha256:
            raise StreamConflict(
                f"{self._folder}: teacher {teacher.name!r} is captured there with model {listed.model_sha256[:16]}, "
                f"and this is {teacher.sha256[:16]}; give another folder"
            )
        form = FileForm(
            teacher.sha256,
            file_header(manifest, teacher, self._contents.codec),
            REGISTRY.header("soft_targets", manifest.schema_fingerprints),
            block_codec(self._contents.codec),
            self._contents.max_file_bytes,
            self._written_heads(teacher),
        )
        name = teacher.name
        return TeacherWriter(self._folder, name, form, lambda: self.lineages[name], listed, self.save)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
