"""Reading what runs report of themselves: the metadata of one commit of their groups.

A group's offset alone carries no time, so the reporter writes a `RunReport` beside the offset of partition 0 of the
run's first teacher.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.kafka.log import Admin
from pipeline.names import run_group
from schemas.commits import RunReport
from schemas.records import Manifest


def read_report(admin: Admin, manifest: Manifest, run: str) -> RunReport | None:
    """Read a run's last report; None if there is none.

    Raises:
        BrokerUnavailable: no answer.
    """
    group = run_group(manifest, run)
    return latest_report(commit.metadata for commit in admin.committed({group: None})[group].values())


def latest_report(texts: Iterable[str | None]) -> RunReport | None:
    """The report among what a run's group said beside its offsets; None if there is none."""
    # More than one only where a run's first teacher was exchanged: the older report is of the earlier one.
    return max(filter(None, map(RunReport.decode, texts)), key=lambda report: report.time, default=None)
