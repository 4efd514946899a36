"""Reading what runs report of themselves: the metadata of one commit of their groups.

A group's offset alone carries no time, so the reporter writes a `RunReport` beside the offset of partition 0 of the
run's first teacher.
"""

from __future__ import annotations

from typing import Any

from kafka import KafkaAdminClient

from pipeline.kafka.coordinator import ask_coordinator
from pipeline.names import run_group
from schemas.commits import RunReport
from schemas.records import Manifest


def read_position(admin: KafkaAdminClient, manifest: Manifest, run: str) -> RunReport | None:
    """Read a run's last report; None if there is none. Errors of kafka-python pass through: wrap with kafka_errors."""
    group = run_group(manifest, run)
    committed: dict[Any, Any] = ask_coordinator(lambda: admin.list_group_offsets(group)).get(group, {})
    reports = [RunReport.decode(one.metadata) for one in committed.values()]
    # More than one only where a run's first teacher was exchanged: the older report is of the earlier one.
    return max(filter(None, reports), key=lambda report: report.time, default=None)
