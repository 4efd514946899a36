"""How a stream stood at one moment: what `status` reads, and what describe, lag, the fleet and metrics show.

Orders are counted as sequences are: one that lies in the log twice counts once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from schemas.codecs import CodecSpec
from schemas.commits import RunReport
from schemas.records import Lineage, Manifest, Teacher


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """How far a teacher is with one partition of the work orders."""

    partition: int
    committed: int
    """the offset that its group goes on from"""
    end: int
    """the offset behind the last work order"""
    lag: int
    """records between the two"""
    labelled: int
    """orders"""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A member of a teacher's group, and what its partitions came to, whoever labelled the first of them."""

    client_id: str
    """its name"""
    member_id: str
    host: str
    partitions: int
    """how many it owns"""
    samples_per_second: float | None
    """as it said when the partitions were shared out last; None: it did not"""
    labelled: int
    """orders"""
    lag: int
    owned: tuple[int, ...]
    """their numbers"""
    labelled_per_second: float | None = None
    """orders of what it owns now; None in a single reading"""


@dataclass(frozen=True, slots=True)
class TeacherStatus:
    """How far a teacher is, and who works for it."""

    name: str
    group: str
    """its consumer group"""
    state: str
    """the group's, in Kafka's words; "Dead" where nobody has joined it yet"""
    members: tuple[WorkerStatus, ...]
    labelled: int
    """orders"""
    lag: int
    """records of work orders that are not committed yet"""
    offsets: tuple[PartitionStatus, ...]
    """[P]"""
    published: int
    """records of soft targets, repetitions counted"""
    labelled_per_second: float | None = None
    """orders; None in a single reading"""

    @property
    def settled(self) -> bool:
        """Whether the members are known: during a rebalance nobody has partitions or a speed."""
        return self.state in ("Stable", "Empty", "Dead")

    @property
    def workers(self) -> dict[str, WorkerStatus]:
        """Name -> worker; the last of those that are called the same."""
        return {member.client_id: member for member in self.members}


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What a run said of itself last."""

    name: str
    report: RunReport
    age: float
    """seconds since then, by the run's own clock; in a reading with rates, by what changed between two"""
    orders_per_second: float | None = None
    """None in a single reading"""

    def trained(self, num_orders: int) -> int:
        """Orders that it took, those of earlier passes counted."""
        return self.report.pass_number * num_orders + self.report.sequence


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """How a stream stood: fed, labelled by each teacher, trained on by each run."""

    stream: str
    stream_id: str
    orders: int
    """of the whole stream"""
    fed: int
    """of them, in the log"""
    teachers: tuple[TeacherStatus, ...]
    unread_teachers: Mapping[str, str]
    """name of a teacher that is not known how to be used -> why"""
    runs: tuple[RunStatus, ...]
    dead_letters: int
    """records"""
    fed_per_second: float | None = None
    """orders; None in a single reading"""

    def teacher(self, name: str) -> TeacherStatus:
        """The teacher of that name, which has to be one that was read."""
        return next(teacher for teacher in self.teachers if teacher.name == name)

    def since(self, before: StreamStatus, seconds: float) -> StreamStatus:
        """The same, with rates: what changed since an earlier reading, so many seconds ago."""
        teachers = {teacher.name: teacher for teacher in before.teachers}
        runs = {run.name: run for run in before.runs}
        return replace(
            self,
            fed_per_second=_rate(before.fed, self.fed, seconds),
            teachers=tuple(_teacher_since(teachers.get(now.name, now), now, seconds) for now in self.teachers),
            runs=tuple(_run_since(runs.get(now.name), now, seconds, self.orders) for now in self.runs),
        )

    def as_dict(self) -> dict[str, Any]:
        """What `topics lag --json` prints."""
        return {**asdict(self), "runs": [_run_as_dict(run) for run in self.runs]}


@dataclass(frozen=True, slots=True)
class StreamDescription:
    """What a stream is, and how it stands."""

    manifest: Manifest
    teachers: Mapping[str, Teacher]
    """name -> how it is fed and read"""
    status: StreamStatus
    lineages: Mapping[str, Lineage] = field(default_factory=dict)
    """name -> who publishes for it, and its generations"""

    def as_dict(self) -> dict[str, Any]:
        """What `topics describe --json` prints: all that lag does, and more."""
        now = self.status.as_dict()
        declared = {name: _teacher_as_dict(teacher, self.manifest.codec) for name, teacher in self.teachers.items()}
        moves = {name: _lineage_as_dict(lineage) for name, lineage in self.lineages.items()}
        teachers = [{**declared[each["name"]], **moves.get(each["name"], {}), **each} for each in now["teachers"]]
        return {**_manifest_as_dict(self.manifest), **now, "teachers": teachers}


def _rate(before: int, after: int, seconds: float) -> float:
    return round((after - before) / seconds, 1)


def _teacher_since(before: TeacherStatus, now: TeacherStatus, seconds: float) -> TeacherStatus:
    labelled = {row.partition: row.labelled for row in before.offsets}
    members = (
        # Of what it has now: who labelled the first of it does not matter.
        replace(one, labelled_per_second=_rate(sum(labelled[each] for each in one.owned), one.labelled, seconds))
        for one in now.members
    )
    rate = _rate(before.labelled, now.labelled, seconds)
    return replace(now, members=tuple(members), labelled_per_second=rate)


def _run_since(before: RunStatus | None, now: RunStatus, seconds: float, num_orders: int) -> RunStatus:
    # A run's clock may be wrong, but a report that came between two readings is new.
    silent = before is not None and before.report == now.report
    age = now.age if silent else min(now.age, round(seconds, 1))
    rate = _rate((before or now).trained(num_orders), now.trained(num_orders), seconds)
    return replace(now, age=age, orders_per_second=rate)


def _run_as_dict(run: RunStatus) -> dict[str, Any]:
    report = run.report
    return {
        "name": run.name,
        "state": report.state,
        "pass": report.pass_number,
        "passes": report.passes,
        "sequence": report.sequence,
        "checkpointed": report.checkpointed,
        "age": run.age,
        "host": report.host,
        "run_id": report.run_id,
        "orders_per_second": run.orders_per_second,
    }


def _manifest_as_dict(manifest: Manifest) -> dict[str, Any]:
    view = manifest.view
    return {
        "dataset": manifest.dataset,
        "dataset_fingerprint": manifest.dataset_fingerprint,
        "samples": manifest.num_samples,
        "classes": manifest.num_classes,
        "class_names": manifest.class_names,
        "view": {"name": view.name, "params": dict(view.params), "version": view.version},
        "order_size": manifest.order_size,
        "epochs": manifest.epochs,
        "seed": manifest.seed,
        "partitions": manifest.partitions,
        "codec": str(manifest.codec),
        "max_record_bytes": manifest.max_record_bytes,
        "replay_of": list(map(asdict, manifest.replay_of)),
    }


def _lineage_as_dict(lineage: Lineage) -> dict[str, Any]:
    by, newest = lineage.publisher, lineage.generations[-1] if lineage.generations else None
    return {
        "publisher": by and {"run": by.run, "run_id": by.run_id, "every": by.every},
        "generations": lineage.newest,
        "newest_generation": newest
        and {name: getattr(newest, name) for name in ("sha256", "weights_sha256", "model", "step", "sequence")},
    }


def _teacher_as_dict(teacher: Teacher, codec: CodecSpec) -> dict[str, Any]:
    return {
        "model_file": teacher.model_file,
        "sha256": teacher.sha256,
        "outputs": [
            {
                "name": one.name,
                "output": one.output,
                "kind": one.kind,
                "shape": list(one.shape),
                "classes": one.num_classes,
                "positions": one.positions,
                "class_map": list(one.class_map),
                "reduction": one.reduction,
                "codec": str(one.stored_as(codec)),
                "cut": one.cut,
                "head_sha256": one.head_sha256,
                "text": str(one),
            }
            for one in teacher.outputs
        ],
        "inference_batch": teacher.inference_batch,
        "inputs": [{**asdict(one), "text": str(one)} for one in teacher.inputs],
    }
