"""Checkpoints: `checkpoints/step-00002000/` with `state.pt` (tensors) and `checkpoint.json` (all else).

A checkpoint is written under another name, flushed to disk and renamed into place last, so that a folder of the right
name is whole, unless the disk itself damaged it: both files carry a SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import platform
import shutil
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.whole_files import writing
from schemas.errors import CheckpointError
from student_trainer.run.edits import WHEN_ASKED, edits, flat
from student_trainer.run.folder import checkpoint_of, newest_first
from student_trainer.sources.base import Cursor

logger = logging.getLogger(__name__)

FORMAT = 3
"""Raised when runs of before cannot be gone on with to the same bits."""

_DAMAGED = (ValueError, KeyError, TypeError, RuntimeError, EOFError)
"""What reading a damaged checkpoint may raise; storage that fails says nothing of the checkpoint."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a bit-identical resume needs, beside the tensors."""

    step: int
    """Optimiser steps that were taken."""
    cursor: dict[str, Any]
    """Where the next batch starts (`Cursor.as_dict`)."""
    metrics_bytes: int
    """Length of metrics.jsonl; what lies beyond is of steps that will be taken again."""
    settings: dict[str, Any]
    """`RunSettings.as_dict`."""
    settings_sha256: str
    source: dict[str, Any]
    """`OrderSource.describe`: fingerprints of dataset or manifest, teachers' hashes."""
    network: dict[str, Any]
    """`Network` as a dict: what the student is built for, so that it loads without its data."""
    machine: dict[str, str]
    """`machine()`: what may change the bits of a result."""
    trace_bytes: int = 0
    """Length of trace.jsonl, as metrics_bytes; 0 where none is written."""
    aligned: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Key of a loss with a projection -> each `Alignment` that stands before that, as a dict."""
    undecodable_rows: int = 0
    """Rows that had weight 0 so far, since their samples cannot be decoded."""
    generation: int = 0
    """The last one that was published, or compared with what was."""
    format: int = FORMAT
    """Of who wrote it."""

    def at(self) -> Cursor:
        """Return the cursor."""
        return Cursor.from_dict(self.cursor)


def machine(threads: int, processes: int = 1) -> dict[str, str]:
    """Return versions, CPU capability (torch's and NumPy's), threads, processes: what the bits of a result hang on."""
    versions = {}
    for package in ("torch", "numpy", "onnxruntime"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    extensions = np.show_config(mode="dicts")["SIMD Extensions"]
    return versions | {
        "cpu": platform.machine(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "numpy_cpu_features": " ".join(extensions["baseline"] + extensions["found"]),
        "threads": str(threads),
        "processes": str(processes),
    }


def save_checkpoint(folder: Path, checkpoint: Checkpoint, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint; keep it, and the newest whole ones before it.

    Those of later steps go: they are of a future that the run gave up when it went back behind them.

    Args:
        folder: `checkpoints/` of a run.
        checkpoint: all but the tensors.
        state: name -> state dict of the model (with buffers), the optimizer, the GradScaler.
        keep: how many stay, with the one that is written; at least 1.

    Raises:
        CannotWrite: the disk refuses; the older ones stay.
    """
    place = checkpoint_of(folder, checkpoint.step)
    with writing(place):
        _write(place, checkpoint, state)
        places = newest_first(folder)
        if place not in places:
            return place  # somebody removed it already, and the run looks soon whether all of its folder went
        at = places.index(place)
        for later in places[:at]:  # a whole one is of the same run, further on
            if not _is_whole(later):
                shutil.rmtree(later)
        num_whole = 1
        for old in places[at + 1 :]:
            if num_whole >= keep:
                shutil.rmtree(old)
            elif _is_whole(old):  # a damaged one is no place to go on from, so it takes none's
                num_whole += 1
    return place


def _write(place: Path, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    place.parent.mkdir(exist_ok=True)
    fresh, stale = place.with_name(f".{place.name}.new"), place.with_name(f".{place.name}.old")
    for left_over in (fresh, stale):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        _fill(fresh, checkpoint, state)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)  # half of it would keep a full disk full
        raise
    if place.exists():  # the damaged one that this run had to go back behind: a folder is not renamed over another
        place.rename(stale)
    fresh.rename(place)
    _flush_folder(place.parent)
    shutil.rmtree(stale, ignore_errors=True)


def _fill(folder: Path, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    folder.mkdir()
    tensors = io.BytesIO()
    torch.save(state, tensors)
    body = asdict(checkpoint) | {"state_sha256": hashlib.sha256(tensors.getbuffer()).hexdigest()}
    text = json.dumps({"checkpoint": body, "sha256": _digest(body)}, indent=1)
    _write_through(folder / "state.pt", tensors.getbuffer())
    _write_through(folder / "checkpoint.json", text.encode())
    _flush_folder(folder)


def _write_through(path: Path, content: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def has_checkpoints(folder: Path) -> bool:
    """Return whether there is any, whole or not."""
    return bool(newest_first(folder))


def load_checkpoint(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Return the newest whole checkpoint and its state dicts; a damaged one is passed over with a warning.

    Raises:
        CheckpointError: there is none, or none whole.
    """
    places = newest_first(folder)
    for place in places:
        try:
            return _read(place)
        except OSError as error:
            text = f"{place}: cannot be read now ({error.strerror}); bring its storage back and resume"
            raise CheckpointError(text) from error
        except _DAMAGED as error:
            logger.warning("checkpoint %s is damaged and passed over: %s", place, error)
    if places:
        raise CheckpointError(f"{folder}: all {len(places)} checkpoints are damaged; start the run anew")
    raise CheckpointError(f"{folder}: there is no checkpoint; start the run anew")


def _read(place: Path) -> tuple[Checkpoint, dict[str, Any]]:
    body, content = _read_bytes(place)
    if (found := body.get("format", 1)) != FORMAT:
        raise CheckpointError(
            f"{place}: was written by {'an older' if found < FORMAT else 'a newer'} Distillog (checkpoints of form "
            f"{found}, {FORMAT} here): go on with that version, or start the run anew"
        )
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return Checkpoint(**body), state


def _read_bytes(place: Path) -> tuple[dict[str, Any], bytes]:
    """Return what checkpoint.json says, and the bytes of state.pt, both as their SHA-256 says they are."""
    for name in ("checkpoint.json", "state.pt"):
        if not (place / name).is_file():
            raise ValueError(f"{name} is missing")
    document = json.loads((place / "checkpoint.json").read_bytes())
    body = document["checkpoint"]
    if _digest(body) != document["sha256"]:
        raise ValueError("checkpoint.json does not match its SHA-256")
    content = (place / "state.pt").read_bytes()
    if hashlib.sha256(content).hexdigest() != body.pop("state_sha256"):
        raise ValueError(f"state.pt ({len(content)} bytes) does not match its SHA-256")
    return body, content


def _is_whole(place: Path) -> bool:
    """Whether a checkpoint is whole; one that cannot be read now is taken for it, since it is not to be removed."""
    try:
        _read_bytes(place)
    except _DAMAGED:
        return False
    except OSError:
        return True
    return True


def check_resume(
    saved: Checkpoint, settings: dict[str, Any], source: dict[str, Any], here: dict[str, str], origin: Path
) -> None:
    """Refuse to resume what would learn something else; warn where the bits may differ.

    Args:
        saved: what was loaded.
        settings: of this process, and so are the others: `RunSettings.as_dict`.
        source: `OrderSource.describe`.
        here: `machine()`.
        origin: the run's folder, for messages.

    Raises:
        CheckpointError: the stream was made anew; or names each difference in student, losses, optimizer, schedule,
            data, batch size, seed, dataset, manifest or teachers.
    """
    if text := another_stream(saved.source, source):  # in which whatever else differs follows from that
        raise CheckpointError(f"{origin}: learned from {text}; {ways_on(origin)}")
    found = edits(saved.settings, settings)
    was, is_now = flat(saved.source), flat(source)
    unlike = [key for key in sorted(was.keys() | is_now.keys()) if was.get(key) != is_now.get(key)]
    # Two hashes do not say what differs: where the data lie does, though that alone may change.
    moved = ["data.dataset"] if "fingerprint" in unlike else []
    refused = [
        str(edit) for edit in found if not edit.allowed or edit.key in moved or (edit.key == "source" and unlike)
    ]
    ways = ways_on(origin)
    if moved and any(edit.key in moved for edit in found):
        unlike.remove("fingerprint")
        ways = f"these are other data: set data.dataset to where the run's own data lie; or else {ways}"
    refused += [_difference(key, was, is_now) for key in unlike]
    if refused:
        raise CheckpointError(f"{origin}: cannot resume a run that differs: {'; '.join(refused)}; {ways}")
    for edit in found:
        if edit.key in WHEN_ASKED:
            logger.warning("%s: resumes with another %s", origin, edit)
    for key, value in here.items():
        if saved.machine.get(key) != value:
            logger.warning(
                "%s: resumes with another %s; the weights may differ in their last bits",
                origin,
                _difference(key, saved.machine, here),
            )


def another_stream(was: dict[str, Any], now: dict[str, Any]) -> str:
    """Say that a stream of one name is another one by now, by what two sources say of theirs; empty if it is not."""
    if was.get("stream") != now.get("stream") or was.get("stream_id") == now.get("stream_id"):
        return ""
    return f"another stream {now['stream']!r} ({was['stream_id']}) than there is now ({now['stream_id']})"


def ways_on(origin: Path) -> str:
    """What to do where a run's folder is in the way."""
    return f"remove that run to train anew (`rm -r {origin}`), or give the run another name"


def _difference(key: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    return f"{key} was {before.get(key)!r}, is {after.get(key)!r}"
