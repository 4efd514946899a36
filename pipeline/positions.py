"""Where a run stands, as it reports to others: the metadata of one commit of its group.

A group's offset alone carries no time, so the reporter writes JSON beside the offset of partition 0 of the run's first
teacher. The checkpoint is the truth; this is a report, for lag and flow control.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient

from pipeline.kafka_clients import ask_coordinator
from pipeline.names import run_group
from schemas.records import Manifest

STATES = ("training", "evaluating", "starving", "done", "stopped", "failed")
"""What a run may be doing."""
_OVER = frozenset({"done", "stopped", "failed"})


@dataclass(frozen=True, slots=True)
class Position:
    """A run's report."""

    pass_number: int
    """How often it went over the stream before, from 0."""
    sequence: int
    """The order that it trains on next."""
    checkpointed: int
    """The order that it would go on with after a crash."""
    time: float
    """Seconds since 1970 by the run's own clock: judge it by change, never against another machine's clock."""
    run_id: str
    """Random for each process."""
    host: str
    state: str
    """One of STATES."""

    @property
    def over(self) -> bool:
        """Whether the run has ended and will not read on."""
        return self.state in _OVER

    def encode(self) -> str:
        """Return the JSON text of the report."""
        return json.dumps(
            {
                "pass": self.pass_number,
                "sequence": self.sequence,
                "checkpointed": self.checkpointed,
                "time": self.time,
                "run_id": self.run_id,
                "host": self.host,
                "state": self.state,
            }
        )

    @classmethod
    def decode(cls, text: str) -> Position | None:
        """Undo `encode`; None for any other text, since anyone may commit to a group without members."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(values, dict):
            return None
        numbers = [values.get(key) for key in ("pass", "sequence", "checkpointed")]
        texts = [values.get(key) for key in ("run_id", "host", "state")]
        at: Any = values.get("time")
        if not all(type(number) is int and number >= 0 for number in numbers):
            return None
        if not all(isinstance(one, str) for one in texts) or values["state"] not in STATES:
            return None
        if type(at) not in (int, float) or not math.isfinite(at):
            return None
        return cls(values["pass"], values["sequence"], values["checkpointed"], float(at), *map(str, texts))


def read_position(admin: KafkaAdminClient, manifest: Manifest, run: str) -> Position | None:
    """Read a run's last report; None if there is none. Errors of kafka-python pass through: wrap with kafka_errors."""
    group = run_group(manifest, run)
    committed: dict[Any, Any] = ask_coordinator(lambda: admin.list_group_offsets(group)).get(group, {})
    reports = [Position.decode(one.metadata) for one in committed.values() if one.metadata]
    # More than one only where a run's first teacher was exchanged: the older report is of the earlier one.
    return max(filter(None, reports), key=lambda report: report.time, default=None)
