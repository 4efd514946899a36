"""CPU seconds that processes have taken so far, where the system says so in /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def cpu_seconds(pids: Iterable[int]) -> float | None:
    """Seconds of CPU, user's and system's, of all these processes together; None where there is no /proc.

    A process that has ended counts nothing.
    """
    if not Path("/proc/self/stat").exists():
        return None
    ticks = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        # The name, which may hold anything, ends with the last bracket; utime and stime are fields 14 and 15.
        fields = text.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
