"""What services write beside the offsets that they commit: JSON, since Kafka keeps it as text, with a version.

Two services meet here beside the records: a worker says which sequence its group expects next, a run reports where it
stands. Anyone may commit to a group without members, so readers take any text and answer None for what is not theirs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

VERSION = 1
"""Of both; a reader ignores what a newer version wrote: neither is needed to go on, the logs say it too."""

_MOST = 1 << 63

RUN_STATES = ("created", "training", "evaluating", "starving", "done", "stopped", "starved", "failed")
"""What a run may be doing, in its reports and in its folder."""

STATES_OVER = frozenset({"done", "stopped", "starved", "failed"})
"""Those in which it has ended and will not read on."""


@dataclass(frozen=True, slots=True)
class LeaseNote:
    """What a teacher's group says of a partition beside the sequence that it expects: how its lease stands."""

    holder: str = ""
    """Member ID of the worker that holds it; "" where the last lease ended with grace."""
    probation: int | None = None
    """Orders committed since it was put on probation; None: it is on none."""
    attempts: int = 0
    """How often the order that is expected was begun on probation."""

    @classmethod
    def decode(cls, text: str | None) -> Self:
        """Read what `encode_next_sequence` wrote; what is no note of ours says nothing."""
        values = _values(text)
        holder, probation = values.get("holder"), values.get("probation")
        attempts: Any = values.get("attempts")
        return cls(
            holder if isinstance(holder, str) and holder.isprintable() else "",
            probation if _is_count(probation) else None,
            attempts if _is_count(attempts) else 0,
        )


NO_NOTE = LeaseNote()


def encode_next_sequence(sequence: int, note: LeaseNote = NO_NOTE) -> str:
    """Return what a teacher's group says beside an offset: the sequence that it expects there, and its lease."""
    fields = {"holder": note.holder or None, "probation": note.probation, "attempts": note.attempts or None}
    said = {key: value for key, value in fields.items() if value is not None}
    return _text({"version": VERSION, "next_sequence": sequence, **said})


def decode_next_sequence(text: str | None, partition: int, partitions: int, offset: int) -> int | None:
    """Read the sequence that `encode_next_sequence` wrote; None for any other text.

    None, too, for a sequence that cannot be expected at the offset of that partition, of so many: it belongs in another
    one, or more orders would have to lie before the offset than it has room for.
    """
    sequence: Any = _values(text).get("next_sequence")
    if not _is_count(sequence) or sequence % partitions != partition:
        return None
    return sequence if partition <= sequence <= partition + offset * partitions else None


@dataclass(frozen=True, slots=True)
class RunReport:
    """Where a run stands, as it tells others. The checkpoint is the truth; this is for lag and flow control."""

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
    """One of RUN_STATES."""
    passes: int | None = None
    """How often it goes over the stream in all; None where it does not say, since a number of steps ends it."""

    @property
    def over(self) -> bool:
        """Whether the run has ended and will not read on."""
        return self.state in STATES_OVER

    def encode(self) -> str:
        """Return the JSON text of the report."""
        fields = {
            "version": VERSION,
            "pass": self.pass_number,
            "sequence": self.sequence,
            "checkpointed": self.checkpointed,
            "time": self.time,
            "run_id": self.run_id,
            "host": self.host,
            "state": self.state,
        }
        return _text(fields if self.passes is None else {**fields, "passes": self.passes})

    @classmethod
    def decode(cls, text: str | None) -> RunReport | None:
        """Undo `encode`; None for any other text."""
        values = _values(text)
        numbers = [values.get(key) for key in ("pass", "sequence", "checkpointed")]
        texts = [values.get(key) for key in ("run_id", "host", "state")]
        at: Any = values.get("time")
        if not all(map(_is_count, numbers)):
            return None
        if not all(isinstance(one, str) and one.isprintable() for one in texts) or values["state"] not in RUN_STATES:
            return None
        if type(at) not in (int, float) or not 0 <= at < _MOST:
            return None
        passes = values.get("passes") if _is_count(values.get("passes")) else None
        run_id, host, state = map(str, texts)
        return cls(values["pass"], values["sequence"], values["checkpointed"], float(at), run_id, host, state, passes)


def _is_count(value: Any) -> bool:
    """Whether it is a number of orders or passes: what a record's field of 64 bits could hold."""
    return type(value) is int and 0 <= value < _MOST


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))


def _values(text: str | None) -> dict[str, Any]:
    """The fields of a text of ours, of this version or an older one; {} for anything else."""
    try:
        values = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    # What was written before there was a version is version 1 in all but that field.
    if not isinstance(values, dict):
        return {}
    version = values.get("version", VERSION)
    return values if type(version) is int and 1 <= version <= VERSION else {}
