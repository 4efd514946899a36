"""Streams by their names and plain values: what the command line and a program of one's own both call.

Wherever `bootstrap_servers` and `kafka_config` are None, the cluster is found as every command finds it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import create
from pipeline import feed as feeder
from pipeline import status as reading
from pipeline.datasets import open_dataset
from pipeline.datasets.base import vocabulary_of
from pipeline.datasets.uri import absolute, pinned
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.found import find_cluster
from pipeline.limits import MAX_SECONDS
from pipeline.streams import Stream, open_stream
from pipeline.topic_settings import retention_ms
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class Created:
    """A stream that is there."""

    stream: Stream
    """As its manifest topic describes it."""
    new: bool
    """Whether this call made it; else it was there, the same."""
    fetcher: Fetcher
    """Its data under its view, as they lie here."""


def create_stream(
    stream: str,
    dataset: str,
    *,
    view: str = "none",
    view_params: Mapping[str, Any] | None = None,
    order_size: int = 256,
    epochs: int = 1,
    seed: int = 0,
    partitions: int = 64,
    codec: str = "float16",
    classes: int = 0,
    retention_hours: float | None = None,
    replication_factor: int = -1,
    bootstrap_servers: str | None = None,
    kafka_config: Path | str | None = None,
) -> Created:
    """Make a stream over a dataset, as `distillog topics create`; the same call again changes nothing.

    Args:
        stream: its name.
        dataset: URI, such as `digits?split=train`; folders are kept as absolute paths.
        view: the augmentation that teacher and student both see.
        view_params: its parameters; numbers, texts, true or false.
        order_size: samples in a work order.
        epochs: passes over the data, each with new views.
        seed: of order and views.
        partitions: at most 256; no more workers than these have work at a time.
        codec: `float32`, `float16`, `int8`, `int4`, `topk:k=10,bits=8,temperatures=1|2` or `sampled:n=50`.
        classes: how many there are; 0: as many as the dataset says.
        retention_hours: how long records are kept; None: for ever.
        replication_factor: copies of each record; -1: the cluster's default.

    Raises:
        ConfigError: an argument out of its range; no such dataset, view or codec.
        StreamConflict: a stream of that name exists and differs.
        NotAuthorized, RecordTooLarge, DataUnavailable, BrokerUnavailable: as the command.
    """
    settings = find_cluster(bootstrap_servers, kafka_config)
    options = create.StreamOptions(
        order_size=order_size,
        epochs=epochs,
        seed=seed,
        partitions=partitions,
        codec=CodecSpec.parse(codec),
        num_classes=classes,
        retention_ms=retention_ms(retention_hours),
        replication_factor=replication_factor,
    )
    spec = view_spec(view, dict(view_params or {}))
    dataset = absolute(dataset)  # a worker may stand in another folder
    fetcher = Fetcher(open_dataset(dataset), spec)
    dataset = pinned(dataset, vocabulary_of(fetcher.dataset).sha256)
    made, new = create.create_stream(settings, stream, fetcher, dataset, options)
    return Created(made, new, fetcher)


def feed(
    stream: str,
    *,
    follow: Sequence[str] = (),
    lead: tuple[int, int] | None = None,
    pace: str = "fastest",
    follow_timeout: float = 60.0,
    appear_timeout: float = 600.0,
    stop: threading.Event | None = None,
    bootstrap_servers: str | None = None,
    kafka_config: Path | str | None = None,
) -> feeder.Fed:
    """Publish a stream's work orders, as `distillog feed`, going on where the topic ends.

    Returns once all are fed, nobody is left to follow, or `stop` is set; call it in a thread of its own to go on.

    Args:
        stream: its name.
        follow: runs, or one of them, to stay ahead of; (): all orders are published at once.
        lead: (low, high) orders ahead of them: publish until high, go on below low; None: 4 and 8 a partition.
        pace: of several runs, ahead of the `fastest`, or of the `slowest`.
        follow_timeout: seconds without a report after which a run is no longer followed, at least 1.
        appear_timeout: seconds to wait for a run that has not reported yet, at least 1.
        stop: ends it at the next order, from any thread.

    Raises:
        ConfigError: a lead without a run to follow, or one that cannot work; a time-out out of its range.
        StreamNotFound, StreamChanged, NotAuthorized, BrokerUnavailable, DeliveryFailed: as the command.
    """
    for name, seconds in (("follow_timeout", follow_timeout), ("appear_timeout", appear_timeout)):
        if not 1 <= seconds <= MAX_SECONDS:
            raise ConfigError(f"{name} must be seconds from 1 to {MAX_SECONDS:g}, is {seconds}")
    settings, stop = find_cluster(bootstrap_servers, kafka_config), stop or threading.Event()
    return feeder.feed(
        KafkaCluster(settings, stop.is_set),
        open_stream(settings, stream),
        (follow,) if isinstance(follow, str) else tuple(follow),
        lead,
        None,
        stop,
        pace=pace,
        follow_timeout=follow_timeout,
        appear_timeout=appear_timeout,
    )


def status(
    stream: str,
    *,
    rates: bool = False,
    bootstrap_servers: str | None = None,
    kafka_config: Path | str | None = None,
) -> dict[str, Any]:
    """Return what a stream is, and how far it is fed, labelled and trained on, as `distillog topics describe --json`.

    With `rates` it reads twice, a second apart, and adds orders per second.

    Raises:
        StreamNotFound, StreamChanged, NotAuthorized, BrokerUnavailable: as the command.
    """
    settings = find_cluster(bootstrap_servers, kafka_config)
    return reading.describe(settings, open_stream(settings, stream), rates).as_dict()
