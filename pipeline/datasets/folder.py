"""Opening a dataset's folder; nothing outside of it is ever read, whatever a split, a name or a link says."""

from __future__ import annotations

from pathlib import Path

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
