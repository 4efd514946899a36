"""Whether the local data are what a stream's manifest says they are."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.datasets import open_dataset
from pipeline.datasets.base import may_have, once_readable, vocabulary_of
from pipeline.datasets.fingerprint import fingerprint
from pipeline.datasets.uri import PIN, split_uri, without_paths
from pipeline.views.fetch import Fetcher
from pipeline.views.probe import check_probe
from schemas.errors import ManifestMismatch
from schemas.records import Manifest


def check_data(
    manifest: Manifest, dataset_uri: str | None = None, loaders: int = 1, processes: bool = False
) -> Fetcher:
    """Opens the stream's dataset, or the same data at another place, and proves that it is the same.

    `loaders` and `processes` are the Fetcher's.

    Raises ManifestMismatch, naming what differs and both values: samples, classes, the tokenizer, a parameter of the
    dataset, content, view or its draws. ConfigError for a dataset or view that cannot be opened, DataUnavailable where
    it cannot be read now.
    """
    uri = dataset_uri or manifest.dataset
    dataset = open_dataset(uri)
    _compare(manifest, uri, "num_samples", manifest.num_samples, dataset.num_samples)
    # 0 is "unknown": the stream's class count then comes from its teachers.
    if manifest.num_classes and not may_have(dataset, manifest.num_classes):
        _compare(manifest, uri, "num_classes", manifest.num_classes, dataset.num_classes)
    if manifest.class_names and dataset.class_names:
        _compare(manifest, uri, "class_names", list(manifest.class_names), list(dataset.class_names))
    if tokenizer := split_uri(manifest.dataset)[2].get(PIN):
        _compare(manifest, uri, "the SHA-256 of its tokenizer", tokenizer, vocabulary_of(dataset).sha256 or "nothing")
    pinned = manifest.dataset_fingerprint
    found = fingerprint(dataset, like=pinned)
    if found != pinned:
        for name, there, here in _other_params(manifest.dataset, uri):
            _compare(manifest, uri, name, there, here)
        _compare(manifest, uri, "samples, fields or labels differ: the fingerprint", pinned, found)
    fetcher = Fetcher(dataset, manifest.view, loaders, processes)
    with once_readable(uri):
        check_probe(fetcher, manifest.view_probe)
    return fetcher


def _other_params(pinned: str, here: str) -> Iterator[tuple[str, str, str]]:
    """(name, pinned value, value here) of the parameters in which two URIs of one kind of dataset differ."""
    kind, _, pinned_params = split_uri(pinned)
    name, _, params = split_uri(here)
    if kind == name:
        pinned_params, params = without_paths(pinned_params), without_paths(params)
        for key in dict.fromkeys((*pinned_params, *params)):
            yield key, pinned_params.get(key, "the default"), params.get(key, "the default")


def _compare(manifest: Manifest, uri: str, what: str, pinned: object, found: object) -> None:
    if pinned != found:
        raise ManifestMismatch(
            f"dataset {uri}: {what} is {found} here, {pinned} in the manifest of stream {manifest.stream}: "
            "point at the data that the stream was created from, or create another stream"
        )
