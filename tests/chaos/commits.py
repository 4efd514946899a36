"""Watches, while a soak runs, that nobody's commits are ahead of what is in the logs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import KafkaError

EVERY = 3.0
"""Seconds between two looks."""


class CommitWatch:
    """A thread that asks for commits first and for the logs' ends after that, so that no commit may be ahead."""

    def __init__(self, servers: Callable[[], str], stream: str, teacher: str, partitions: int) -> None:
        self.problems: list[str] = []
        self.looks = 0
        """How often all of it was answered."""
        self._servers = servers
        self._stream = stream
        self._partitions = partitions
        self._orders = f"{stream}.work-orders"
        self._labels = f"{stream}.soft-targets.{teacher}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="commits", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(60.0)

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            try:
                admin = KafkaAdminClient(
                    bootstrap_servers=self._servers().split(","),
                    bootstrap_timeout_ms=5000,
                    request_timeout_ms=10000,
                )
            except KafkaError:
                continue  # a broker is away, as it is to be
            try:
                while not self._stop.wait(EVERY):
                    self.look(admin)
            except (KafkaError, OSError, KeyError, ValueError):
                continue
            finally:
                admin.close()

    def look(self, admin: KafkaAdminClient) -> None:
        names = [each["group_id"] for each in admin.list_groups()]
        ours = [name for name in names if name.startswith(f"distillog.{self._stream}.")]
        commits = admin.list_group_offsets(ours) if ours else {}
        there = [TopicPartition(topic, n) for topic in (self._orders, self._labels) for n in range(self._partitions)]
        ends = {
            partition: found.offset
            for partition, found in admin.list_partition_offsets(dict.fromkeys(there, OffsetSpec.LATEST)).items()
        }
        for group, offsets in commits.items():
            for partition, commit in offsets.items():
                if commit.offset > ends[partition]:
                    self.problems.append(
                        f"{group} committed {commit.offset} of {partition}, which ends at {ends[partition]}"
                    )
                said = json.loads(commit.metadata or "{}").get("next_sequence")
                if said is None:
                    continue
                # As many orders lie below it in this partition, and each of them is labelled.
                needed = len(range(partition.partition, said, self._partitions))
                labelled = ends[TopicPartition(self._labels, partition.partition)]
                if needed > labelled:
                    self.problems.append(f"{group} committed order {said} of {partition}, and {labelled} are labelled")
        self.looks += 1
