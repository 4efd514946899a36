"""Opening a dataset's folder; nothing outside of it is ever read, whatever a split, a name or a link says."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.datasets.base import Faults, Ints
from pipeline.user_code import said
from schemas.errors import ConfigError


def open_folder(dataset: str, path: str, split: str) -> tuple[Path, Path]:
    """(root, folder of the split), both real paths. Raises ConfigError when missing or outside the root."""
    if not path:
        raise ConfigError(f"dataset {dataset} needs a folder: write {dataset}:/path/to/folder")
    root = Path(path).resolve()
    folder = root / split if split else root
    refuse_outside(root, folder)
    if not folder.is_dir():
        raise ConfigError(f"dataset {dataset}: no folder {folder}")
    return root, folder.resolve()


def refuse_outside(root: Path, path: Path) -> None:
    """Raises ConfigError when `path`, its links followed, lies outside `root`."""
    if not path.resolve().is_relative_to(root):
        raise ConfigError(f"{path} leads outside the dataset's folder {root}: refused; copy the data into it")


def class_names_of(root: Path, folder: Path) -> tuple[str, ...]:
    """The lines of the folder's `classes.txt`, or of the root's; nothing where there is none."""
    for place in (folder, root):
        file = place / "classes.txt"
        if file.is_file():
            refuse_outside(root, file)
            return tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
    return ()


def files_by_class(
    root: Path, folder: Path, suffixes: tuple[str, ...]
) -> tuple[tuple[str, ...], Ints, tuple[str, ...]]:
    """(files, labels, class names) of a folder with one subfolder a class, both sorted by name.

    Files are relative to the folder; `labels` is [n] int64, -1 of those directly in the folder; a subfolder without
    files of the lower-case `suffixes` is no class. Raises ConfigError for a link that leads out of `root`.
    """
    files, subfolders = _listed(root, folder, suffixes)
    labels = [-1] * len(files)
    names: list[str] = []
    for subfolder in subfolders:
        inside, _ = _listed(root, folder / subfolder, suffixes)
        files += [f"{subfolder}/{file}" for file in inside]
        labels += [len(names)] * len(inside)
        names += [subfolder] if inside else []
    return tuple(files), np.array(labels, np.int64), tuple(names)


@dataclass(frozen=True, slots=True, eq=False)
class FilesByClass:
    """What datasets have in common whose samples are a folder's files, one subfolder a class."""

    uri: str
    folder: Path
    files: tuple[str, ...]
    """Relative to the folder; a file's place is its sample ID."""
    label_array: Ints
    """[n] int64"""
    class_names: tuple[str, ...]
    thread_safe: ClassVar[bool] = True

    @property
    def num_samples(self) -> int:
        """The number of files."""
        return len(self.files)

    @property
    def num_classes(self) -> int:
        """The number of subfolders with files; 0 when all are unlabelled."""
        return len(self.class_names)

    def raw(self, sample_id: int) -> bytes:
        """A file's bytes. Raises OSError."""
        return (self.folder / self.files[sample_id]).read_bytes()

    def labels(self, sample_ids: Ints) -> Ints:
        """[N] int64"""
        return self.label_array[sample_ids]

    def decoded(self, sample_ids: Ints, decode: Callable[[int, int, bytes], object]) -> tuple[Ints, Faults]:
        """Reads, then decodes from memory: so a broken mount (OSError) is never taken for a broken file (a fault).

        `decode` is given a row of the request, the place that it is put at, and the file's bytes; a row that it fails
        on leaves its place to the next. Returns the rows that it put, [M] int64, and the faults.
        """
        rows: list[int] = []
        faults: list[tuple[int, str]] = []
        for row, sample_id in enumerate(sample_ids.tolist()):
            raw = self.raw(sample_id)
            try:
                decode(row, len(rows), raw)
                rows.append(row)
            except MemoryError:
                raise  # the machine's fault, not the file's
            except Exception as error:  # decoders raise whatever they like on broken bytes
                faults.append((row, f"{self.files[sample_id]}: {said(error)}"))
        return np.array(rows, np.int64), tuple(faults)


def _listed(root: Path, folder: Path, suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Sorted names of (files, subfolders). Only links are resolved: a million files are listed in a second."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_file = entry.name.lower().endswith(suffixes)
            if entry.is_symlink() and (is_file or entry.is_dir()):
                refuse_outside(root, Path(entry.path))
            if entry.is_dir():
                folders.append(entry.name)
            elif is_file:
                files.append(entry.name)
    return sorted(files), sorted(folders)
