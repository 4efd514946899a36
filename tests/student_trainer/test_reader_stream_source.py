"""source = "stream": orders with their labels, on a real log written by hand."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import TopicPartition
from reader_logs import Logs, label
from train_runs import run as train_run

from pipeline.create import StreamOptions, add_teacher, create_stream
from pipeline.datasets import open_dataset
from pipeline.datasets.base import ArrayDataset
from pipeline.kafka.clients import new_admin, new_producer
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic
from pipeline.streams import Stream, delete_stream, open_stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec, Dense, TopK
from schemas.errors import ConfigError, LogTrimmed, ManifestMismatch, SequenceGap, Starved
from schemas.records import Output, Teacher, TeacherInput, TeacherOutput
from student_trainer.learning.targets import TargetSpec
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.sources.base import Cursor, LabelledOrder
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings

pytestmark = pytest.mark.kafka

URI = "mnist1d?split=train&n=100&seed=0"
CLASSES = 10
NUM_ORDERS = 12  # 2 epochs of 6, the last of each with 10 samples


def make_stream(settings: KafkaSettings, name: str, teachers: tuple[str, ...], codec: str) -> Stream:
    fetcher = Fetcher(open_dataset(URI), view_spec("signal", {"noise": 0.1}))
    options = StreamOptions(order_size=18, epochs=2, partitions=2, codec=CodecSpec.parse(codec))
    create_stream(settings, name, fetcher, URI, options)
    for teacher in teachers:
        stream = open_stream(settings, name)
        inputs = (TeacherInput("x", "signal", "float32", "", 1.0, ()),)
        output = TeacherOutput.of_classes("logits", "logits", CLASSES)
        digest = secrets.token_hex(32)
        record = Teacher(stream.manifest.stream_id, teacher, digest, "m.onnx", inputs, (output,), 18)
        add_teacher(settings, stream, record)
    return open_stream(settings, name)


@pytest.fixture
def make_logs(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]) -> Iterator[Callable[..., Logs]]:
    admin, producer = new_admin(kafka_settings), new_producer(kafka_settings)
    made: list[str] = []

    def make(teachers: tuple[str, ...] = ("cnn",), codec: str = "float32") -> Logs:
        name = fresh_name("stream")
        made.append(name)
        return Logs(kafka_settings, make_stream(kafka_settings, name, teachers, codec), admin, producer)

    yield make
    producer.close(timeout=5)
    admin.close()
    for name in made:
        delete_stream(kafka_settings, name)


def run(logs: Logs, **sections: Any) -> RunSettings:
    document: dict[str, Any] = {
        "name": "mlp",
        "data": {"stream": logs.stream.manifest.stream},
        "teachers": [{"name": name} for name in logs.stream.teachers],
        "student": {"name": "mlp"},
        "losses": [{"name": "forward_kl"}],
        "train": {"batch_size": 8},
        "starve": {"warning": 1.0, "timeout": 3.0},
    }
    for name, values in sections.items():
        document[name] = values if isinstance(values, list) else document[name] | values
    return run_settings(document)


def source_of(logs: Logs, settings: RunSettings) -> StreamSource:
    return StreamSource(logs.settings, StreamSettings.of(settings))


def labelled(logs: Logs, teacher: str, sequence: int, kept: list[int] | None = None) -> Any:
    """Soft targets whose logit of class 0 is the sample ID, so that rows can be told apart."""
    targets = label(logs.stream, teacher, sequence)
    rows = np.arange(len(targets.sample_ids)) if kept is None else np.array(kept, np.int64)
    logits = np.tile(np.arange(CLASSES, dtype=np.float32), (len(rows), 1))
    logits[:, 0] = targets.sample_ids[rows]
    output = Output.of("logits", logits, logs.stream.manifest.codec)
    return replace(targets, kept_rows=None if kept is None else rows, outputs=(output,))


def orders(source: StreamSource, cursor: Cursor | None = None) -> list[LabelledOrder]:
    try:
        return list(source.orders(cursor or Cursor.start()))
    finally:
        source.close()


def test_orders_come_with_the_samples_and_the_view_seed_that_the_teacher_saw(make_logs: Callable[..., Logs]) -> None:
    logs = make_logs()
    logs.write("cnn", *(labelled(logs, "cnn", sequence) for sequence in range(NUM_ORDERS)))
    source = source_of(logs, run(logs, train={"passes": 2}))
    assert (source.num_classes, source.labelled_fraction) == (CLASSES, 1.0)
    spec = TargetSpec("logits", (CLASSES,), CLASSES, logs.stream.manifest.codec, default=True)
    assert (source.targets, source.has_labels) == ({"cnn.logits": spec}, True)
    ready = orders(source)
    assert [(one.pass_number, one.sequence) for one in ready] == [(p, s) for p in (0, 1) for s in range(NUM_ORDERS)]
    for one in ready:
        ids = source.sequence.sample_ids(one.sequence)
        seed = source.sequence.view_seed(source.sequence.epoch_of(one.sequence))
        assert np.array_equal(one.sample_ids, ids)
        assert one.view_seed == seed
        assert np.array_equal(one.labels, source.fetcher.dataset.labels(ids))
        (target,) = one.targets.values()
        assert list(one.targets) == ["cnn.logits"]
        assert isinstance(target, Dense)
        assert np.array_equal(target.logits[:, 0], ids)
        assert one.address == f"{logs.stream.manifest.stream}.soft-targets.cnn/{one.sequence % 2}@{one.sequence // 2}"
        read = [(one.sequence - partition) // 2 + 1 for partition in (0, 1)]
        assert one.place == (None if one.sequence == NUM_ORDERS - 1 else {"offsets": {"cnn": read}})
    statistics = source.statistics()
    assert (statistics["records"], statistics["duplicates"], statistics["early"]) == (2 * NUM_ORDERS, 0, 0)


def test_a_label_beyond_the_teachers_classes_is_refused_where_a_loss_looks_at_labels(
    make_logs: Callable[..., Logs], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = make_logs()
    logs.write("cnn", *(labelled(logs, "cnn", sequence) for sequence in range(NUM_ORDERS)))
    data, ids = open_dataset(URI), np.arange(100)
    other = Fetcher(ArrayDataset(URI, data.read(ids).fields, data.labels(ids) + CLASSES), logs.stream.manifest.view)
    monkeypatch.setattr("student_trainer.sources.teachers.check_data", lambda *asked: other)
    with pytest.raises(ConfigError, match=f"has label .*, but there are {CLASSES} classes, from 0 on"):
        orders(source_of(logs, run(logs, losses=[{"name": "cross_entropy"}])))
    assert orders(source_of(logs, run(logs)))


def test_a_resumed_source_goes_on_at_the_cursor(make_logs: Callable[..., Logs]) -> None:
    logs = make_logs()
    logs.write("cnn", *(labelled(logs, "cnn", sequence) for sequence in (0, 2, 0, 2, 1, 4, 6, 3, 5, 7, 9, 11, 8, 10)))
    for place in (
        {"offsets": {"cnn": [2, 2]}},
        None,
        {"offsets": {"vit": [9, 9]}},
        {"offsets": {"cnn": [9]}},
        "file 3",
    ):
        ready = orders(source_of(logs, run(logs)), Cursor(0, 4, 7, place))
        assert [one.sequence for one in ready] == list(range(4, NUM_ORDERS))
        assert ready[0].place["offsets"]["cnn"][0] == 5


def test_only_kept_rows_are_fetched_and_teachers_are_zipped(make_logs: Callable[..., Logs]) -> None:
    logs = make_logs(("cnn", "vit"), "topk:k=2,temperatures=1|2")
    logs.write("cnn", *(labelled(logs, "cnn", s, kept=[0, 2, 3, 5]) for s in range(NUM_ORDERS)))
    logs.write("vit", *(labelled(logs, "vit", s, kept=[] if s == 3 else [1, 2, 5, 7]) for s in range(NUM_ORDERS)))
    source = source_of(logs, run(logs, data={"labelled": 20, "label_seed": 3}))
    assert [spec.codec.temperatures for spec in source.targets.values()] == [(1.0, 2.0)] * 2
    assert source.has_labels
    assert source.labelled_fraction == 0.2
    ready = orders(source)
    assert [len(one.labels) for one in ready] == [0 if s == 3 else 2 for s in range(NUM_ORDERS)]
    one = ready[0]
    ids = source.sequence.sample_ids(0)[[2, 5]]
    assert np.array_equal(one.sample_ids, ids)
    assert list(one.targets) == ["cnn.logits", "vit.logits"]
    assert all(isinstance(target, TopK) and target.indices.shape == (2, 2) for target in one.targets.values())
    sizes = [len(source.sequence.sample_ids(sequence)) for sequence in range(NUM_ORDERS)]
    assert source.statistics()["rows_left_out"] == sum(sizes) - 2 * (NUM_ORDERS - 1)


def test_starving_ends_the_orders_and_is_measured(make_logs: Callable[..., Logs]) -> None:
    logs = make_logs()
    logs.write("cnn", labelled(logs, "cnn", 0))
    source = source_of(logs, run(logs))
    with pytest.raises(Starved, match="no soft targets for sequence 1"):
        orders(source)
    assert 3.0 <= source.statistics()["longest_wait_s"] < 10.0
    assert not source.starving


def test_a_close_ends_a_wait_in_another_thread(make_logs: Callable[..., Logs], eventually: Any) -> None:
    source = source_of(make_logs(), run(make_logs(), starve={"timeout": 60.0}))
    taken: list[list[LabelledOrder]] = []
    thread = threading.Thread(target=lambda: taken.append(orders(source)))
    thread.start()
    eventually(lambda: source.starving)
    source.close()
    thread.join(timeout=0.8)
    assert not thread.is_alive()
    assert taken == [[]]


def test_a_hole_ends_the_orders(make_logs: Callable[..., Logs]) -> None:
    logs = make_logs()
    logs.write("cnn", labelled(logs, "cnn", 0), labelled(logs, "cnn", 3))
    logs.commit("cnn", 1, 5)
    with pytest.raises(SequenceGap, match="sequence 1 "):
        orders(source_of(logs, run(logs, starve={"timeout": 30.0})))


NOTHING = np.zeros((18, CLASSES), np.float32)
UNLIKE: dict[str, tuple[tuple[Output, ...], str]] = {
    "another codec": (
        (Output.of("logits", NOTHING, CodecSpec("float16")),),
        r"logits of 10 classes as float16, rows of \[10\]",
    ),
    "another name": ((Output.of("scores", NOTHING, CodecSpec()),), "scores of 10 classes as float32"),
    "other classes": ((Output.of("logits", NOTHING[:, 1:], CodecSpec()),), "logits of 9 classes"),
    "no classes": ((Output.of("logits", NOTHING, CodecSpec(), classes=False),), "logits of features as float32"),
    "places": ((Output.of("logits", NOTHING[:, None], CodecSpec()),), r"rows of \[1, 10\]"),
    "one output more": (
        (Output.of("logits", NOTHING, CodecSpec()), Output.of("hidden", NOTHING, CodecSpec(), classes=False)),
        "hidden of features",
    ),
    "none at all": ((), "no output"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_outputs_that_are_not_as_the_teachers_record_says_are_refused(
    name: str, make_logs: Callable[..., Logs]
) -> None:
    logs = make_logs()
    outputs, says = UNLIKE[name]
    logs.write("cnn", replace(labelled(logs, "cnn", 0), outputs=outputs))
    declared = r"; the record of teacher 'cnn' says logits of 10 classes as float32, rows of \[10\]; it is not"
    with pytest.raises(ManifestMismatch, match=rf"soft-targets\.cnn/0@0: .*{says}.*{declared}"):
        orders(source_of(logs, run(logs)))


OTHERWISE = ("k=1,temperatures=1|2", "k=3,temperatures=1|2", "k=2,temperatures=1", "k=2,temperatures=1|2|4")


@pytest.mark.parametrize("kept", OTHERWISE)
def test_classes_that_are_kept_otherwise_than_the_stream_says_are_refused(
    kept: str, make_logs: Callable[..., Logs]
) -> None:
    logs = make_logs(codec="topk:k=2,temperatures=1|2")
    other = Output.of("logits", NOTHING, CodecSpec.parse(f"topk:{kept}"))
    logs.write("cnn", labelled(logs, "cnn", 0), replace(labelled(logs, "cnn", 1), outputs=(other,)))
    with pytest.raises(ManifestMismatch, match=r"soft-targets\.cnn/1@0: .*is stored as topk:k=2,temperatures=1\|2"):
        orders(source_of(logs, run(logs)))


def test_without_a_loss_that_learns_from_it_no_output_is_read(make_logs: Callable[..., Logs]) -> None:
    logs = make_logs()
    logs.write("cnn", *(labelled(logs, "cnn", sequence) for sequence in range(NUM_ORDERS)))
    found = orders(source_of(logs, run(logs, losses=[{"name": "cross_entropy"}])))
    assert [dict(one.targets) for one in found] == [{}] * NUM_ORDERS


def test_a_run_is_known_by_content(make_logs: Callable[..., Logs]) -> None:
    logs = make_logs()
    described = source_of(logs, run(logs)).describe()
    assert described["stream_id"] == logs.stream.manifest.stream_id
    assert described["teachers"] == {"cnn": logs.stream.teachers["cnn"].sha256}


def repeated(logs: Logs) -> None:
    """Write all labels, each partition's first two orders twice: what follows lies two places further on."""
    for partition in (0, 1):
        numbers = list(range(partition, NUM_ORDERS, 2))
        logs.write("cnn", *(labelled(logs, "cnn", number) for number in (*numbers[:2], *numbers)))


def forget_the_place(folder: Path) -> None:
    """Leave the newest checkpoint without its source's hint."""
    place = sorted((folder / "checkpoints").iterdir())[-1] / "checkpoint.json"
    body = json.loads(place.read_text())["checkpoint"]
    assert body["cursor"]["place"]["offsets"]["cnn"]
    body["cursor"]["place"] = None
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    place.write_text(json.dumps({"checkpoint": body, "sha256": digest}))


@pytest.mark.parametrize("trimmed", [False, True], ids=["whole log", "log trimmed by retention"])
def test_a_run_resumed_without_its_sources_hint_ends_in_the_same_bits(
    make_logs: Callable[..., Logs], tmp_path: Path, trimmed: bool
) -> None:
    logs = make_logs()
    repeated(logs)

    def trained(name: str, **settings: Any) -> str:
        found = run(logs, losses=[{"name": "forward_kl"}, {"name": "cross_entropy"}], train=settings)
        return train_run(tmp_path / name, found, source_of(logs, found)).weights_sha256

    whole = trained("whole")
    assert trained("loaders", loaders=3) == whole
    assert trained("r", steps=12) != whole
    forget_the_place(tmp_path / "r")
    if trimmed:
        # 96 rows end in order 5, and order 6 lies at 5: what is looked for begins at 3, and the log now at 4.
        topic = soft_targets_topic(logs.stream.manifest.stream, "cnn")
        logs.admin.delete_records({TopicPartition(topic, 0): 4, TopicPartition(topic, 1): 4})
    assert trained("r", steps=0) == whole


def test_a_run_whose_labels_retention_removed_says_so_with_or_without_the_hint(make_logs: Callable[..., Logs]) -> None:
    logs = make_logs()
    repeated(logs)
    topic = soft_targets_topic(logs.stream.manifest.stream, "cnn")
    logs.admin.delete_records({TopicPartition(topic, 0): 6})
    for place, sought in ((None, 3), ({"offsets": {"cnn": [5, 4]}}, 5)):
        cursor = Cursor(0, 5, 6, place)
        with pytest.raises(LogTrimmed, match=rf"offset {sought}, .* all records below 6, sequence 6 among them"):
            orders(source_of(logs, run(logs)), cursor)
