"""What a soak came to: `report.json`, and one line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """What a soak came to, as `report.json` has it."""

    seed: int
    brokers: int
    faults: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    lost: int = -1
    identical: bool = False
    takeover_median_s: float | None = None
    takeover_worst_s: float | None = None
    longest_wait_s: float = 0.0
    """Of either student, over all its processes: the longest wait for a batch. The wait of a new process for its first
    batch counts, connecting and reading included, but for a run's very first; so does that of one that was killed or
    asked to end meanwhile: as the time since its last step, which is never less. The time between two processes does
    not."""
    probations: int = 0
    """Partitions that a worker found abandoned and put on probation, each as often as that happened; by the workers'
    logs, which those of a fleet have no more once their supervisor is killed."""
    apart: int = 0
    """Orders that were given to a child process, since workers had ended over them, by the same logs; no fault by
    itself."""
    duplicates: int = 0
    early: int = 0
    dead_letters: int = 0
    repeated_letters: int = 0
    orders: int = 0
    commits_looked_at: int = 0
    refused_starts: int = 0
    """Processes that ended with one line since Kafka was away while they started, and were started again."""
    minutes: float = 0.0
    soak_minutes: float = 0.0
    """Of them, from the first process to the last one's end."""
    problems: list[str] = field(default_factory=list)
    kept: str = ""
    """Folder of a failing soak's event log, topics, runs and processes' logs."""

    @property
    def passed(self) -> bool:
        return not self.problems and self.lost == 0 and self.identical

    def line(self) -> str:
        """What is said in the end."""
        took = "" if self.takeover_median_s is None else (
            f"takeover {self.takeover_median_s:.1f} s (worst {self.takeover_worst_s:.1f} s), "
        )  # fmt: skip
        what = (
            f"seed {self.seed}, {self.brokers} broker{'s' * (self.brokers > 1)}: {self.faults} faults in "
            f"{self.soak_minutes:.1f} of {self.minutes:.1f} min, {max(self.lost, 0)} lost of {self.orders} orders, "
            f"weights {'identical' if self.identical else 'DIFFERENT'}, {took}longest wait of a step "
            f"{self.longest_wait_s:.1f} s, {self.duplicates} duplicates, {self.dead_letters} dead letters explained, "
            f"{self.probations} partitions put on probation, {self.apart} orders labelled apart"
        )
        if self.passed:
            return f"chaos passed: {what}"
        return f"chaos FAILED: {self.problems[0] if self.problems else 'see above'} ({what}; kept in {self.kept})"
