"""Whether a worker that joins gives the labels that others of its teacher gave: a few rows of one order in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing

from kafka import TopicPartition

from pipeline.kafka.log import Cluster
from pipeline.kafka.reading import read_to_end
from pipeline.names import REPLAY_OF, address_of, soft_targets_topic
from pipeline.stored_labels import Stored
from pipeline.streams import Stream, topic_missing
from pipeline.views.fetch import Fetcher
from schemas.errors import DecodeError, LabelsDiffer, StreamChanged
from schemas.records import SoftTargets
from teacher_service.models.session import OnnxTeacher
from teacher_service.proof.again import Again, Difference
from teacher_service.proof.compare import Ranges
from teacher_service.proof.rows import Choice

log = logging.getLogger(__name__)

_ROWS = Choice(rows=8)
_LOOKS = 8
"""Partitions whose last record is looked at; a stream may have hundreds."""
_TIMEOUT = 30.0
"""Seconds for one of them."""


def check_agreement(
    cluster: Cluster,
    stream: Stream,
    fetcher: Fetcher,
    model: OnnxTeacher,
    ranges: Ranges,
    worker: str,
    limit: float,
    of_generation: Callable[[int], OnnxTeacher | None] = lambda number: None,
) -> str:
    """Label rows of the last order of some partition again that another worker labelled.

    Args:
        cluster, stream, fetcher, model: what the worker works with.
        ranges: of the model's outputs on the stream's first order.
        worker: its name; what it labelled itself shows nothing.
        limit: largest change, as a share of an output's range.
        of_generation: gives the model of another generation than `model` is, by which the log's last labels may be;
            None: it cannot be had, so those are not compared with.

    Returns:
        What came of it, in words; "" where no other worker's labels are there.

    Raises:
        LabelsDiffer: beyond the limit.
        DataUnavailable, ModelFailed, BrokerUnavailable, StreamChanged, NotAuthorized: as their names say.
    """
    own, number = Again(stream.manifest, fetcher, model, ranges), model.teacher.generation
    for stored in _of_others(cluster, stream, model.teacher.name, worker):
        again = own
        if stored.value.generation != number:
            if (other := of_generation(stored.value.generation)) is None:
                continue
            again = Again(stream.manifest, fetcher, other)
        piece = again.piece(stored, _ROWS)
        if isinstance(piece, Difference) or not len(piece.rows):
            continue  # whoever may write the topic may write any record, and one is not to keep every worker out
        found = again.compare([piece], limit)
        by = f"order {piece.sequence} ({piece.address}), labelled by worker {piece.worker}"
        for each in found.differences:
            raise LabelsDiffer(
                f"this worker, {worker} on {model.provider}, gives other labels than {by}: {each.what} (limit "
                f"{limit:g} of the range); run it on another device or execution provider, see with `distillog verify "
                f"{stream.manifest.stream} {model.path}` who is right, or raise --agreement"
            )
        largest = max(float(change.share.max(initial=0.0)) for changes in found.changes for change in changes.values())
        return f"agrees with {by}: largest change {largest:.1e} of the output's range, in {len(piece.rows)} rows"
    return ""


def _of_others(cluster: Cluster, stream: Stream, teacher: str, worker: str) -> Iterator[Stored]:
    """Yield the last records of a few partitions, those that other workers wrote."""
    manifest = stream.manifest
    topic = soft_targets_topic(manifest.stream, teacher)
    partitions = [TopicPartition(topic, number) for number in range(manifest.partitions)]
    with closing(cluster.reader()) as reader:
        if not reader.partitions(topic):
            _refuse_gone(cluster, topic)
        begins, ends = reader.begins(partitions), reader.ends(partitions)
        written = [each for each in partitions if begins[each] < ends[each]]
        for partition in written[:_LOOKS]:
            end = ends[partition]
            for record in read_to_end(reader, partition, end - 1, _TIMEOUT, end):
                headers = dict(record.headers)
                # Whoever labelled what was copied is another worker, or as good as one.
                copied = f"of {headers[REPLAY_OF].decode(errors='backslashreplace')}" if REPLAY_OF in headers else ""
                writer = copied or (headers.get("worker") or b"").decode(errors="backslashreplace")
                try:
                    value = SoftTargets.decode(record.value or b"", address_of(record))
                except DecodeError as error:
                    log.debug("not compared with: %s", error)
                    continue
                if value.stream_id == manifest.stream_id and writer not in ("", worker):
                    yield Stored(value, address_of(record), writer)


def _refuse_gone(cluster: Cluster, topic: str) -> None:
    """Raise StreamChanged where a topic does not exist, NotAuthorized where it may not be seen."""
    with closing(cluster.admin()) as admin:
        if admin.identities([topic])[topic] is None:
            raise StreamChanged(topic_missing(topic))
