"""What a verification looks at: a teacher's labels in a stream, or in a folder of captured files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.captured.folder import CapturedFolder
from pipeline.captured.labels import CapturedLabels
from pipeline.stored_labels import StoredLabels
from schemas.errors import ManifestMismatch
from schemas.names import is_name
from schemas.records import Lineage, Manifest, Teacher
from teacher_service.models.files import model_sha256, refuse_another

if TYPE_CHECKING:
    from pipeline.kafka.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class Subject:
    """A teacher's labels, wherever they are kept."""

    what: str
    """Where, in words."""
    manifest: Manifest
    teacher: Teacher
    """As it was with the model that is asked."""
    lineage: Callable[[int], Lineage]
    """(a label's generation) -> the teacher through its generations, that one among them if there is such a one."""
    labels: Callable[[int, int], StoredLabels]
    """(the first order, the one behind the last) -> those of the range."""
    remedy: str
    """What to do about labels that differ."""


def is_folder(name: str) -> bool:
    """Whether a command's STREAM is a folder: no stream's name has a slash or a dot."""
    return not is_name(name)


def of_stream(settings: KafkaSettings, name: str, model_path: Path, teacher: str | None) -> Subject:
    """Open a stream's labels of the teacher whose model a file is.

    Raises:
        StreamNotFound, ManifestMismatch, BrokerUnavailable: as `open_stream` and `find_teacher`.
    """
    # Files are verified without Kafka's client.
    from pipeline.kafka.cluster import KafkaCluster
    from pipeline.logged_labels import LoggedLabels
    from pipeline.streams import open_stream
    from teacher_service.serve import find_teacher

    stream = open_stream(settings, name)
    found = _of_generation(stream.lineages, model_path, teacher) or find_teacher(stream, model_path, teacher)
    known = stream.lineage(found.name)

    def lineage(generation: int) -> Lineage:
        nonlocal known
        if known.at(generation) is None:  # it moves on while it is looked at
            known = open_stream(settings, name).lineage(found.name)
        return known

    return Subject(
        f"stream {name!r}",
        stream.manifest,
        found,
        lineage,
        lambda begin, until: LoggedLabels(KafkaCluster(settings), stream, found.name, begin, until),
        "Labels once written are never changed: label the stream under another teacher name",
    )


def of_folder(folder: Path | str, model_path: Path, teacher: str | None) -> Subject:
    """Open a folder's labels, or those behind a URL, of the teacher whose model a file is.

    Raises:
        StreamNotFound: no such teacher was captured.
        ManifestMismatch: the file is none of their models, or that of several.
        ConfigError, DecodeError: it is no folder of captured labels, or what says what they are is damaged.
    """
    captured = CapturedFolder(folder)
    sha256 = model_sha256(model_path)
    if teacher is None:
        there = captured.contents.teachers
        names = [
            name
            for name, each in there.items()
            if sha256 in (each.model_sha256, *(generation.sha256 for generation in each.generations))
        ]
        if len(names) > 1:
            raise ManifestMismatch(
                f"{model_path} is the model of several teachers ({', '.join(names)}): say which with --teacher"
            )
        if not names:
            known = ", ".join(f"{name} ({each.model_sha256[:12]})" for name, each in there.items()) or "none"
            raise ManifestMismatch(f"{model_path} ({sha256[:12]}) is no teacher of {folder} (there: {known})")
        teacher = names[0]
    files = captured.teacher(teacher)
    found = files.lineage.of_model(sha256)
    if found is None:
        refuse_another(model_path, files.teacher, sha256)
        found = files.teacher
    entry = captured.contents.teachers[teacher]
    return Subject(
        f"folder {folder}",
        files.manifest,
        found,
        lambda generation: files.lineage,
        lambda begin, until: CapturedLabels(files, entry, begin, until),
        "Bring back a whole copy, or capture them again; if the stream holds them so, too, label it under another "
        "teacher name",
    )


def _of_generation(lineages: Mapping[str, Lineage], model_path: Path, name: str | None) -> Teacher | None:
    """Return the one teacher that is asked for as it was with a model, of the generations after its first; else None.

    Raises:
        ManifestMismatch: several had it.
    """
    sha256 = model_sha256(model_path)
    found = [each for one in lineages.values() if name in (None, one.teacher.name) and (each := one.of_model(sha256))]
    later = [each for each in found if each.generation]
    if later and len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise ManifestMismatch(f"{model_path} is the model of several teachers ({names}): say which with --teacher")
    return later[0] if later else None
