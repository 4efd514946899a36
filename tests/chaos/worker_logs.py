"""What the logs of workers tell: how their leases ended, and how they did themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PROBATION = re.compile(r"the last worker of (\d+) partitions ended without a word")
APART = re.compile(r"order (\d+): begun before by workers that ended; labelled in a child process")
ENDED = re.compile(
    r"^(?P<worker>\S+) (?:was killed by (?P<signal>\w+)|(?:ended|left) with exit code (?P<code>-?\d+)(?P<words>.*))",
    re.MULTILINE,
)
REFUSED = re.compile(r": (?:[^:]*: )?no answer from Kafka at \S+; is it running\?")


@dataclass(slots=True)
class Told:
    """What some logs tell. A worker whose supervisor is dead tells nothing more."""

    probations: int = 0
    """Partitions put on probation, each as often as it was."""
    apart: set[int] = field(default_factory=set)
    """Orders begun in a child process, by their sequences."""
    kills: Counter[str] = field(default_factory=Counter)
    """Worker of a fleet -> how often its supervisor found it killed by SIGKILL."""
    refused_starts: int = 0
    """Of a fleet's workers: those whose supervisor tried again since they met no broker."""
    ends: list[str] = field(default_factory=list)
    """Of a fleet's workers: all others."""


def read(logs: Iterable[Path]) -> Told:
    """Read workers' and supervisors' logs."""
    told = Told()
    for log in logs:
        text = log.read_text(errors="replace")
        told.probations += sum(int(count) for count in PROBATION.findall(text))
        told.apart |= {int(number) for number in APART.findall(text)}
        for end in ENDED.finditer(text):
            if end["signal"] == "SIGKILL":
                told.kills[end["worker"]] += 1
            elif end["code"] and REFUSED.match(end["words"]):
                told.refused_starts += 1
            else:
                told.ends.append(f"{end.group()} ({log})")
    return told
