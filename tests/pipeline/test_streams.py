from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kafka import TopicPartition
from small_streams import DATASET, OPTIONS, fetcher, small_stream, working

from pipeline.create import StreamOptions, _check_record_size, add_teacher, create_stream
from pipeline.datasets import open_dataset
from pipeline.datasets.fingerprint import fingerprint
from pipeline.feed import feed
from pipeline.kafka.clients import new_admin
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.coordinator import ask_coordinator
from pipeline.kafka.log import Commit
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, teacher_group, work_orders_topic
from pipeline.rewind import rewind
from pipeline.streams import Stream, TopicGuard, delete_stream, list_streams, open_stream
from pipeline.topic_settings import KEEP_FOR_EVER
from pipeline.views import view_spec
from pipeline.views.check import check_data
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.commits import encode_next_sequence
from schemas.errors import (
    ConfigError,
    DistillogError,
    RecordTooLarge,
    StreamChanged,
    StreamConflict,
    StreamNotFound,
)
from schemas.records import Teacher, TeacherInput, TeacherOutput

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]


def teacher(stream: Stream, name: str = "cnn", **changes: object) -> Teacher:
    made = Teacher(
        stream_id=stream.manifest.stream_id,
        name=name,
        sha256="ab" * 32,
        model_file="cnn.onnx",
        inputs=(TeacherInput("x", "signal", "float32", "", 1.0, ()),),
        outputs=(TeacherOutput.of_classes("logits", "logits", 10),),
        inference_batch=8,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def commit(settings: KafkaSettings, stream: Stream, name: str, partition: int, offset: int) -> None:
    admin = KafkaCluster(settings).admin()
    try:
        at = TopicPartition(work_orders_topic(stream.manifest.stream), partition)
        admin.commit(teacher_group(stream.manifest, name), {at: Commit(offset)})
    finally:
        admin.close()


def test_a_stream_with_a_fingerprint_of_the_first_form_is_there_already_and_its_data_the_same(
    kafka_settings: KafkaSettings, fresh_name: Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fresh_name("stream")
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.create.fingerprint", lambda dataset, like="": fingerprint(dataset, like="0" * 64))
        first, _ = create_stream(kafka_settings, name, fetcher(), DATASET, OPTIONS)
    try:
        assert len(first.manifest.dataset_fingerprint) == 64
        again, new = create_stream(kafka_settings, name, fetcher(), DATASET, OPTIONS)
        assert (again.manifest.stream_id, new) == (first.manifest.stream_id, False)
        check_data(again.manifest)
    finally:
        delete_stream(kafka_settings, name)


def test_a_stream_is_opened_as_it_was_made(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    made = small_stream(kafka_settings, fresh_name("s"), codec=CodecSpec.parse("topk:k=3"), seed=5)
    opened = open_stream(kafka_settings, made.manifest.stream)
    assert opened.manifest.encode() == made.manifest.encode()
    assert (opened.manifest.num_samples, opened.manifest.num_classes, opened.manifest.seed) == (200, 10, 5)
    assert opened.teachers == {}
    assert made.manifest.stream in list_streams(kafka_settings)


def test_creating_a_stream_twice_changes_nothing(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    first = small_stream(kafka_settings, fresh_name("s"))
    second, new = create_stream(kafka_settings, first.manifest.stream, fetcher(), DATASET, OPTIONS)
    assert not new
    assert second.manifest.encode() == first.manifest.encode()


DIFFERENCES = {
    "seed": (StreamOptions(order_size=10, partitions=4, seed=1), "none", "seed is 0, asked 1"),
    "partitions and codec": (
        StreamOptions(order_size=10, partitions=8, codec=CodecSpec("float32")),
        "none",
        "partitions is 4, asked 8; codec is float16, asked float32",
    ),
    "view": (OPTIONS, "signal", "view is none, asked signal"),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_creating_it_otherwise_is_refused_with_the_difference(
    case: str, kafka_settings: KafkaSettings, fresh_name: Name
) -> None:
    options, view, difference = DIFFERENCES[case]
    name = fresh_name("s")
    small_stream(kafka_settings, name)
    with pytest.raises(StreamConflict) as caught:
        create_stream(kafka_settings, name, fetcher(view), DATASET, options)
    way_out = f"give another name, or remove it with all its labels first: `distillog topics delete {name}`"
    assert str(caught.value) == f"stream {name!r} exists and differs: {difference}; {way_out}"


def test_another_dataset_is_refused_by_its_name_and_not_by_two_hashes(
    kafka_settings: KafkaSettings, fresh_name: Name
) -> None:
    name, other = fresh_name("s"), "mnist1d?split=train&n=300"
    small_stream(kafka_settings, name)
    with pytest.raises(StreamConflict) as caught:
        create_stream(kafka_settings, name, Fetcher(open_dataset(other), view_spec("none", {})), other, OPTIONS)
    difference = f"dataset is {DATASET}, asked {other}; num_samples is 200, asked 300; give another name"
    assert str(caught.value).startswith(f"stream {name!r} exists and differs: {difference}")


def test_another_view_parameter_is_refused_by_its_name(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    name = fresh_name("s")
    create_stream(kafka_settings, name, fetcher("signal", noise=0.1), DATASET, OPTIONS)
    with pytest.raises(StreamConflict, match=r"differs: view parameter noise is 0\.1, asked 0\.2; give"):
        create_stream(kafka_settings, name, fetcher("signal", noise=0.2), DATASET, OPTIONS)


def test_a_stream_deleted_and_made_again_has_another_id_and_no_groups(
    kafka_settings: KafkaSettings, fresh_name: Name
) -> None:
    stream = small_stream(kafka_settings, fresh_name("s"))
    add_teacher(kafka_settings, stream, teacher(stream))
    commit(kafka_settings, stream, "cnn", 0, 3)
    deleted = delete_stream(kafka_settings, stream.manifest.stream)
    assert deleted.groups == [teacher_group(stream.manifest, "cnn")]
    assert len(deleted.topics) == 4
    with pytest.raises(StreamNotFound):
        open_stream(kafka_settings, stream.manifest.stream)
    again = small_stream(kafka_settings, stream.manifest.stream)
    assert again.manifest.stream_id != stream.manifest.stream_id


def test_an_unknown_stream_names_the_nearest(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    name = fresh_name("handwriting")
    small_stream(kafka_settings, name)
    for act in (open_stream, delete_stream):
        with pytest.raises(StreamNotFound, match=f"no stream '{name}x'"):
            act(kafka_settings, name + "x")
    with pytest.raises(StreamNotFound, match=f"did you mean '{name}'"):
        open_stream(kafka_settings, name + "x")


def test_an_order_too_large_for_the_cluster_is_refused_with_a_size_that_fits(
    kafka_settings: KafkaSettings, fresh_name: Name
) -> None:
    name = fresh_name("s")
    large = replace(OPTIONS, order_size=1 << 20, codec=CodecSpec("float32"))
    with pytest.raises(RecordTooLarge, match=r"use --order-size \d+ or less") as caught:
        create_stream(kafka_settings, name, fetcher(), DATASET, large)
    fitting = int(str(caught.value).split("--order-size ")[1].split()[0])
    create_stream(kafka_settings, name, fetcher(), DATASET, replace(large, order_size=fitting))


def test_one_sample_too_large_for_the_cluster_asks_for_topk(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("s"), order_size=1)
    huge = replace(stream.manifest, num_classes=1 << 28, class_names=(), max_record_bytes=1 << 30)
    with pytest.raises(RecordTooLarge, match=r"one sample of 268435456 classes as float16 .*; use a topk codec"):
        _check_record_size(huge, 1 << 20)


@pytest.mark.parametrize("partitions", [0, 257])
def test_a_number_of_partitions_out_of_range_is_refused(
    partitions: int, kafka_settings: KafkaSettings, fresh_name: Name
) -> None:
    with pytest.raises(ConfigError, match="--partitions must be between 1 and 256"):
        create_stream(kafka_settings, fresh_name("s"), fetcher(), DATASET, replace(OPTIONS, partitions=partitions))


def test_labels_are_kept_for_ever_unless_asked_otherwise_and_the_manifest_always(
    kafka_settings: KafkaSettings, fresh_name: Name
) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    name = fresh_name("s")
    stream = small_stream(kafka_settings, name, retention_ms=3_600_000)
    add_teacher(kafka_settings, stream, teacher(stream))
    wanted = {
        manifest_topic(name): str(KEEP_FOR_EVER),
        work_orders_topic(name): "3600000",
        dead_letters_topic(name): "3600000",
        soft_targets_topic(name, "cnn"): "3600000",
    }
    admin = new_admin(kafka_settings)
    try:
        for topic, retention in wanted.items():
            resource = ConfigResource(ConfigResourceType.TOPIC, topic)
            (found,) = admin.describe_configs([resource], config_filter="all").values()
            assert found[topic]["retention.ms"]["value"] == retention
            assert found[topic]["segment.index.bytes"]["config_source"] == "DYNAMIC_TOPIC_CONFIG"
    finally:
        admin.close()


def test_adding_a_teacher_twice_changes_nothing(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("s"))
    assert add_teacher(kafka_settings, stream, teacher(stream))
    stream = open_stream(kafka_settings, stream.manifest.stream)
    assert stream.teacher("cnn").encode() == teacher(stream).encode()
    assert not add_teacher(kafka_settings, stream, teacher(stream, model_file="same-under-another-name.onnx"))


REFUSED_TEACHERS = {
    "another model": ({"sha256": "cd" * 32}, StreamConflict, "exists and differs: sha256 is abab"),
    "another scale": (
        {"inputs": (TeacherInput("x", "signal", "float32", "", 1 / 255, ()),)},
        StreamConflict,
        r"differs: inputs is signal -> x: float32, \*1, asked signal -> x: float32, \*1/255; give",
    ),
    "another class count": (
        {"name": "b", "outputs": (TeacherOutput.of_classes("y", "logits", 7),)},
        StreamConflict,
        "7 classes, stream '.*' has 10",
    ),
}


@pytest.mark.parametrize("case", REFUSED_TEACHERS)
def test_a_teacher_that_does_not_fit_is_refused(case: str, kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    changes, error, text = REFUSED_TEACHERS[case]
    stream = small_stream(kafka_settings, fresh_name("s"))
    add_teacher(kafka_settings, stream, teacher(stream))
    stream = open_stream(kafka_settings, stream.manifest.stream)
    with pytest.raises(error, match=text):
        add_teacher(kafka_settings, stream, teacher(stream, **changes))


TOO_MANY = "keeps k=11 of only 10 classes: use k <= 10"


def test_more_kept_classes_than_there_are_are_refused_before_anything_is_made(
    kafka_settings: KafkaSettings, fresh_name: Name
) -> None:
    name = fresh_name("s")
    with pytest.raises(ConfigError, match=TOO_MANY):
        small_stream(kafka_settings, name, codec=CodecSpec.parse("topk:k=11"))
    assert name not in list_streams(kafka_settings)


def test_a_teacher_of_fewer_classes_than_are_kept_is_refused(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("s"), codec=CodecSpec.parse("topk:k=10"))
    unknown = replace(stream.manifest, num_classes=0, class_names=(), codec=CodecSpec.parse("topk:k=11"))
    with pytest.raises(ConfigError, match=TOO_MANY):
        add_teacher(kafka_settings, Stream(unknown, {}), teacher(stream))


def test_more_copies_than_there_are_brokers_are_refused_in_one_line(
    kafka_settings: KafkaSettings, fresh_name: Name
) -> None:
    with pytest.raises(
        ConfigError, match=r"99 copies of each record are wanted, and \d+ brokers? (is|are) there"
    ) as told:
        small_stream(kafka_settings, fresh_name("s"), replication_factor=99)
    assert len(str(told.value)) < 250


def test_an_unknown_teacher_says_which_there_are(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("s"))
    with pytest.raises(StreamNotFound, match=r"no teacher 'cnn' \(there: none\); add it with"):
        stream.teacher("cnn")


def test_the_guard_notices_a_stream_that_is_taken_away(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("s"))
    name = stream.manifest.stream
    guard = TopicGuard(KafkaCluster(kafka_settings), [work_orders_topic(name)])
    try:
        guard.check(now=True)
        delete_stream(kafka_settings, name)
        with pytest.raises(StreamChanged, match="was deleted while"):
            guard.check(now=True)
        small_stream(kafka_settings, name)
        with pytest.raises(StreamChanged, match="deleted and made again"):
            guard.check(now=True)
    finally:
        guard.close()


@pytest.fixture
def fed(kafka_settings: KafkaSettings, fresh_name: Name) -> Stream:
    stream = small_stream(kafka_settings, fresh_name("s"))
    add_teacher(kafka_settings, stream, teacher(stream))
    feed(KafkaCluster(kafka_settings), stream)
    return open_stream(kafka_settings, stream.manifest.stream)


def test_a_rewind_sets_the_group_back_to_the_order(kafka_settings: KafkaSettings, fed: Stream) -> None:
    commit(kafka_settings, fed, "cnn", 2, 5)
    assert rewind(kafka_settings, fed, "cnn", 10) == 2
    group = teacher_group(fed.manifest, "cnn")
    admin = new_admin(kafka_settings)
    try:
        (there,) = ask_coordinator(lambda: admin.list_group_offsets(group))[group].values()
    finally:
        admin.close()
    assert (there.offset, there.metadata) == (2, encode_next_sequence(10))


REFUSED_REWINDS: dict[str, tuple[str, int, type[DistillogError], str]] = {
    "ahead of the group": ("cnn", 18, ConfigError, "skipping orders makes a gap"),
    "beyond the stream": ("cnn", 20, ConfigError, "has the orders 0 to 19, not 20"),
    "unknown teacher": ("dnn", 0, StreamNotFound, "no teacher 'dnn'"),
}


@pytest.mark.parametrize("case", REFUSED_REWINDS)
def test_a_rewind_that_repairs_nothing_is_refused(case: str, kafka_settings: KafkaSettings, fed: Stream) -> None:
    name, sequence, error, text = REFUSED_REWINDS[case]
    commit(kafka_settings, fed, "cnn", 2, 1)
    with pytest.raises(error, match=text):
        rewind(kafka_settings, fed, name, sequence)


def test_a_rewind_of_a_group_without_commits_goes_by_its_labels(kafka_settings: KafkaSettings, fed: Stream) -> None:
    with pytest.raises(ConfigError, match=r"stands at order 2 of .*work-orders/2; order 6 comes later"):
        rewind(kafka_settings, fed, "cnn", 6)
    assert rewind(kafka_settings, fed, "cnn", 2) == 0


def test_a_rewind_to_an_order_that_is_not_fed_is_refused(kafka_settings: KafkaSettings, fresh_name: Name) -> None:
    stream = small_stream(kafka_settings, fresh_name("s"))
    add_teacher(kafka_settings, stream, teacher(stream))
    stream = open_stream(kafka_settings, stream.manifest.stream)
    with pytest.raises(ConfigError, match="order 3 is not fed yet"):
        rewind(kafka_settings, stream, "cnn", 3)


def test_a_rewind_under_working_teachers_is_refused(
    kafka_settings: KafkaSettings, fed: Stream, eventually: Callable[..., object]
) -> None:
    with (
        working(kafka_settings, fed, "cnn", eventually),
        pytest.raises(StreamConflict, match="has members: stop all workers of teacher 'cnn', then rewind"),
    ):
        rewind(kafka_settings, fed, "cnn", 0)


def folder_of_nine(path: Path) -> str:
    """A dataset whose labels show nine of its classes."""
    path.mkdir()
    np.save(path / "signal.npy", np.arange(18 * 4, dtype=np.float32).reshape(18, 4))
    np.save(path / "labels.npy", np.arange(18) % 9)
    return f"npy:{path}"


def of(uri: str) -> Fetcher:
    return Fetcher(open_dataset(uri), view_spec("none", {}))


def test_classes_that_were_counted_may_be_more_and_not_fewer(
    kafka_settings: KafkaSettings, fresh_name: Name, tmp_path: Path
) -> None:
    uri = folder_of_nine(tmp_path / "data")
    made, _ = create_stream(kafka_settings, fresh_name("s"), of(uri), uri, replace(OPTIONS, num_classes=10))
    assert made.manifest.num_classes == 10
    check_data(made.manifest)
    with pytest.raises(ConfigError, match=r"--classes 8: dataset .* has 9 classes"):
        create_stream(kafka_settings, fresh_name("s"), of(uri), uri, replace(OPTIONS, num_classes=8))


def test_a_copy_of_the_data_in_another_folder_makes_no_other_stream(
    kafka_settings: KafkaSettings, fresh_name: Name, tmp_path: Path
) -> None:
    name, uri, copy = fresh_name("s"), folder_of_nine(tmp_path / "a"), folder_of_nine(tmp_path / "b")
    create_stream(kafka_settings, name, of(uri), uri, OPTIONS)
    again, new = create_stream(kafka_settings, name, of(copy), copy, OPTIONS)
    assert (again.manifest.dataset, new) == (uri, False)
    np.save(tmp_path / "b" / "labels.npy", np.arange(18)[::-1] % 9)
    with pytest.raises(StreamConflict, match="exists and differs: dataset is"):
        create_stream(kafka_settings, name, of(copy), copy, OPTIONS)
