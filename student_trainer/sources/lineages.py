"""Which generations of its teachers a reader knows; it reads on where a label is of a later one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.kafka.log import Cluster
from pipeline.manifest_log import ManifestFollower
from pipeline.names import manifest_topic
from pipeline.streams import Stream
from schemas.errors import BrokerUnavailable
from schemas.records import Lineage, SoftTargets

_ANSWER = 5.0
"""Seconds that one reading may take before it is said what is waited for."""


class KnownLineages:
    """Those of a reader's teachers; used by one thread."""

    def __init__(self, cluster: Cluster, stream: Stream, teachers: Iterable[str]) -> None:
        self._lineages = {name: stream.lineage(name) for name in teachers}
        self._topic = manifest_topic(stream.manifest.stream)
        self._follower = ManifestFollower(cluster, stream.manifest)

    def __getitem__(self, teacher: str) -> Lineage:
        """Return one, as far as it is known."""
        return self._lineages[teacher]

    def of(self, teachers: Iterable[str]) -> list[Lineage]:
        """Return some, as far as they are known."""
        return [self._lineages[name] for name in teachers]

    def lacks(self, value: SoftTargets) -> bool:
        """Whether labels are of a later generation than is known."""
        lineage = self._lineages.get(value.teacher)
        return lineage is not None and value.generation > lineage.newest

    def learn(self, unknown: Mapping[str, int]) -> str:
        """Read the manifest's topic to its end; what is not known then is nobody's.

        For a generation's record is acknowledged before the first label by it is written.

        Args:
            unknown: generations by teacher, for what is said.

        Returns:
            What is in the way, where Kafka gave no answer; "" if it did.
        """
        try:
            known = self._follower.read(_ANSWER).lineages
        except BrokerUnavailable as error:
            of = ", ".join(f"generation {number} of teacher {name!r}" for name, number in unknown.items())
            return f"reading {self._topic} for {of}: {error}"
        self._lineages = {name: known.get(name, there) for name, there in self._lineages.items()}
        return ""

    def close(self) -> None:
        """Close its client."""
        self._follower.close()
