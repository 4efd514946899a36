"""Run as a script: becomes another program, told (SIGHUP) when its parent dies in whatever way.

`tether.py PARENT CORES PROGRAM ARGUMENT...`: the process ID of the parent, and the cores to run on as `0,1` (empty: as
the parent). On Linux alone, which can do both; the parent's thread that starts it must live as long as the parent. The
signal may come several times, once for each thread of the parent.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with(parent: int, number: int) -> None:
    """Get a signal as soon as the thread that started this process ends (on Linux; nothing elsewhere)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0):
            sys.exit(f"error: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before it was tied to
        os._exit(1)


def main(parent: int, cores: str, command: list[str]) -> None:
    """Never returns."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # of a parent under nohup it would be ignored
    end_with(parent, signal.SIGHUP)
    if cores:
        os.sched_setaffinity(0, map(int, cores.split(",")))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
