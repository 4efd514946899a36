"""The reader on a real log, written by hand."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from kafka import TopicPartition
from kafka.errors import TopicAlreadyExistsError
from reader_logs import Logs, label, logs_of, make_stream

from pipeline.broker.local import LocalBroker
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic
from schemas.errors import (
    LogTrimmed,
    ManifestMismatch,
    SequenceGap,
    Starved,
    StreamChanged,
    StreamNotFound,
)
from schemas.records import SoftTargets
from student_trainer.run.settings import StarveSettings
from student_trainer.sources.held import Wait
from student_trainer.sources.reader import SoftTargetReader
from student_trainer.sources.starvation import Starvation

pytestmark = pytest.mark.kafka

FreshName = Callable[[str], str]


class Patience:
    """Ends a wait that should not last."""

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self.waits: list[Wait] = []

    def __call__(self, wait: Wait) -> None:
        self.waits.append(wait)
        assert wait.seconds < self.seconds, f"waited for {wait}"


@pytest.fixture
def logs(kafka_settings: KafkaSettings, fresh_name: FreshName) -> Iterator[Logs]:
    with logs_of(kafka_settings, make_stream(fresh_name("stream"), ("cnn",))) as made:
        yield made


@contextmanager
def reading(logs: Logs, teachers: tuple[str, ...] = ("cnn",), **more: Any) -> Iterator[SoftTargetReader]:
    reader = SoftTargetReader(KafkaCluster(logs.settings), logs.stream, teachers, **more)
    try:
        yield reader
    finally:
        reader.close()


def read(reader: SoftTargetReader, sequences: range) -> list[tuple[int, ...]]:
    """The sequence that each teacher's record says, order by order."""
    taken = []
    for sequence in sequences:
        held = reader.next(sequence, Patience())
        assert held is not None
        taken.append(tuple(each.value.sequence for each in held))
    return taken


def test_every_sequence_comes_once_and_in_order(logs: Logs) -> None:
    logs.write("cnn", *range(20))
    with reading(logs) as reader:
        reader.seek(0, ())
        assert read(reader, range(20)) == [(sequence,) for sequence in range(20)]
        assert (reader.num_records, reader.num_duplicates, reader.num_early) == (20, 0, 0)


def test_what_is_not_expected_is_dropped_and_counted(logs: Logs, caplog: pytest.LogCaptureFixture) -> None:
    foreign = label(logs.stream, "cnn", 0, stream_id="f" * 16)
    logs.write("cnn", 3, foreign, 0, 0, 3, 0, 3)  # partition 0: early, another stream's, and duplicates
    logs.write("cnn", b"", b"no Avro at all", label(logs.stream, "cnn", 1).encode()[:-3], partition=1)
    logs.write("cnn", 1, 4, 2, 5)
    with reading(logs) as reader, caplog.at_level(logging.WARNING):
        reader.seek(0, ())
        assert read(reader, range(6)) == [(0,), (1,), (2,), (3,), (4,), (5,)]
        assert (reader.num_early, reader.num_duplicates) == (1, 3)
        assert (reader.num_foreign, reader.num_undecodable) == (1, 3)
    told = [one.getMessage() for one in caplog.records if "no soft targets" in one.getMessage()]
    assert len(told) == 1
    assert f"{soft_targets_topic(logs.stream.manifest.stream, 'cnn')}/1@0" in told[0]


def newer(record: SoftTargets) -> bytes:
    """The record as a program of tomorrow writes it: under a fingerprint that nobody here knows."""
    return record.encode()[:2] + b"\xab" * 8 + record.encode()[10:]


def test_a_record_of_an_unknown_schema_ends_nobody_and_is_named_when_a_label_is_missing(logs: Logs) -> None:
    logs.write("cnn", newer(label(logs.stream, "cnn", 0)), 0, partition=0)
    logs.write("cnn", newer(label(logs.stream, "cnn", 1)), partition=1)
    with reading(logs) as reader:
        reader.seek(0, ())
        assert read(reader, range(1)) == [(0,)]
        told = "; 2 records of unknown schemas were dropped \\(the last of abababababababab\\): did a newer Distillog"
        with pytest.raises(Starved, match=told):
            reader.next(1, Starvation(StarveSettings(warning=1.2, timeout=3.0), logs.stream.manifest.stream))
        assert (reader.num_unknown, reader.num_undecodable) == (2, 2)
        logs.commit("cnn", 1, 4)
        with pytest.raises(SequenceGap, match=rf"sequence 1 of teacher 'cnn' is missing.*rewind.* cnn 1`{told}"):
            reader.next(1, Patience())


def test_the_cursors_offsets_are_where_reading_begins(logs: Logs) -> None:
    logs.write("cnn", 0, 3, 6, 1, 4, 2, 5, 3, 9, 6, 9)
    with reading(logs) as reader:
        reader.seek(0, ())
        ends = [0, 0, 0]
        for sequence in range(5):
            held = reader.next(sequence, Patience())
            assert held is not None
            ends[sequence % 3] = held[0].next_offset
    assert ends == [2, 2, 1]
    with reading(logs) as reader:
        reader.seek(5, [ends])
        assert read(reader, range(5, 7)) == [(5,), (6,)]
        assert reader.num_duplicates + reader.num_early == 3  # what lay before the cursor is not read again


def test_a_pass_begins_again_at_the_beginning(logs: Logs) -> None:
    logs.write("cnn", *range(20))
    with reading(logs) as reader:
        reader.seek(12, [[4, 4, 4]])
        assert read(reader, range(12, 20)) == [(sequence,) for sequence in range(12, 20)]
        reader.seek(0)
        assert read(reader, range(20)) == [(sequence,) for sequence in range(20)]


def test_labels_are_waited_for(logs: Logs) -> None:
    logs.write("cnn", 0, 2)
    with reading(logs) as reader:
        reader.seek(0, ())
        assert read(reader, range(1)) == [(0,)]
        writer = threading.Timer(1.5, logs.write, ("cnn", 1))
        writer.start()
        patience = Patience()
        held = reader.next(1, patience)
        writer.join()
        assert held is not None
        assert {wait.logs for wait in patience.waits} == {(("cnn", 1),)}
        assert 1.0 < reader.longest_wait < 10.0
        assert reader.waiting == 0.0


def test_a_stop_ends_a_wait_within_half_a_second(logs: Logs) -> None:
    stop = threading.Event()
    with reading(logs, stop=stop) as reader:
        reader.seek(0, ())
        threading.Timer(1.3, stop.set).start()
        begun = time.monotonic()
        assert reader.next(0, Patience()) is None
        assert time.monotonic() - begun < 1.8


def test_two_teachers_are_zipped(kafka_settings: KafkaSettings, fresh_name: FreshName) -> None:
    with logs_of(kafka_settings, make_stream(fresh_name("stream"), ("cnn", "vit"))) as logs:
        logs.write("cnn", *range(9))
        logs.write("vit", 2, 1, 0, 0, 1, 2, 3, 4, 5, 8, 7, 6)
        with reading(logs, ("vit", "cnn")) as reader:
            reader.seek(0, ())
            for sequence in range(9):
                held = reader.next(sequence, Patience())
                assert held is not None
                assert [each.value.teacher for each in held] == ["vit", "cnn"]
                assert [each.value.sequence for each in held] == [sequence, sequence]
            logs.write("cnn", 9)
            with pytest.raises(Starved, match=r"sequence 9 .*soft-targets\.vit/0; teacher 'vit' has 0 workers"):
                reader.next(9, Starvation(StarveSettings(warning=1.2, timeout=3.0), logs.stream.manifest.stream))


def test_a_hole_is_proven(logs: Logs) -> None:
    logs.write("cnn", 0, 6, 9)
    logs.commit("cnn", 0, 12)
    with reading(logs) as reader:
        reader.seek(0, ())
        assert read(reader, range(1)) == [(0,)]
        logs.write("cnn", 1, 2)
        assert read(reader, range(1, 3)) == [(1,), (2,)]
        repair = f"distillog topics rewind {logs.stream.manifest.stream} cnn 3"
        with pytest.raises(SequenceGap, match=rf"/0: sequence 3 of teacher 'cnn' is missing.*{repair}"):
            reader.next(3, Patience())


def test_no_commit_is_no_proof(logs: Logs) -> None:
    logs.write("cnn", 0, 6, 9)
    for commit in (0, 3):  # none says that sequence 3 was published
        if commit:
            logs.commit("cnn", 0, commit)
        with reading(logs) as reader:
            reader.seek(0, ())
            assert read(reader, range(1)) == [(0,)]
            starvation = Starvation(StarveSettings(warning=1.0, timeout=3.5), logs.stream.manifest.stream)
            logs.write("cnn", 1, 2)
            assert read(reader, range(1, 3)) == [(1,), (2,)]
            with pytest.raises(Starved):
                reader.next(3, starvation)


def test_starving_says_what_is_missing_and_what_to_do(logs: Logs, caplog: pytest.LogCaptureFixture) -> None:
    name = logs.stream.manifest.stream
    with reading(logs) as reader, caplog.at_level(logging.WARNING):
        reader.seek(0, ())
        with pytest.raises(Starved, match="gave up") as caught:
            reader.next(0, Starvation(StarveSettings(warning=1.2, timeout=4.0), name))
    assert caught.value.exit_code == 3
    told = [one.getMessage() for one in caplog.records if "no soft targets for sequence 0 since" in one.getMessage()]
    assert len(told) == 2  # after 1.2 s and 2.4 s
    assert f"waiting for {name}.soft-targets.cnn/0; teacher 'cnn' has 0 workers" in told[0]
    assert f"`distillog teach {name} MODEL.onnx`" in told[0]


def test_where_workers_are_there_the_advice_is_not_to_start_another() -> None:
    def said(members: dict[str, int], trouble: str = "") -> str:
        with pytest.raises(Starved) as caught:
            Starvation(StarveSettings(), "s")(Wait(7, (("cnn", 1), ("vit", 1)), 600.0, members, trouble))
        return str(caught.value)

    for members in ({"cnn": 4, "vit": 1}, {}):
        assert "; `distillog topics lag s` shows what they do; gave up" in said(members)
        assert "distillog teach" not in said(members)
    assert "teacher 'cnn' has 4 workers; teacher 'vit' has 0 workers; start one" in said({"cnn": 4, "vit": 0})
    assert "Kafka gives no answer (silent for 9 s); is it running?" in said({"cnn": 0}, "silent for 9 s")


def test_a_log_that_was_trimmed_below_the_cursor_is_refused(logs: Logs) -> None:
    logs.write("cnn", *range(18))
    partition = TopicPartition(soft_targets_topic(logs.stream.manifest.stream, "cnn"), 1)
    logs.admin.delete_records({partition: 3})
    with reading(logs) as reader:
        reader.seek(0, ())
        with pytest.raises(LogTrimmed, match=r"soft-targets\.cnn/1: .* offset 0, .* below 3"):
            read(reader, range(20))
    with reading(logs) as reader:
        reader.seek(9, [[3, 3, 3]])
        assert read(reader, range(9, 12)) == [(9,), (10,), (11,)]


def test_a_cursor_beyond_the_log_is_refused(logs: Logs) -> None:
    logs.write("cnn", 0, 1, 2)
    with reading(logs) as reader:
        reader.seek(30, [[9, 9, 9]])
        with pytest.raises(LogTrimmed, match="offset 10, but the log ends at 1"):
            reader.next(18, Patience())


@pytest.mark.parametrize("made_again", [False, True])
def test_a_topic_that_is_taken_away_is_noticed(logs: Logs, eventually: Any, made_again: bool) -> None:
    logs.write("cnn", 0, 1, 2, 3)
    with reading(logs) as reader:
        reader.seek(0, ())
        assert read(reader, range(4)) == [(0,), (1,), (2,), (3,)]
        logs.admin.delete_topics([soft_targets_topic(logs.stream.manifest.stream, "cnn")])
        if made_again:
            logs.made.remove(soft_targets_topic(logs.stream.manifest.stream, "cnn"))
            eventually(lambda: remade(logs), what="making the topics again")
            logs.write("cnn", 4, 4, 4)
        with pytest.raises(StreamChanged, match="deleted and made again" if made_again else "deleted"):
            read(reader, range(4, 20))


def remade(logs: Logs) -> bool:
    """Whether the topics could be made again: a deletion is not over when it is answered."""
    try:
        logs.make_topics()
    except TopicAlreadyExistsError:
        return False
    return True


def test_an_unknown_teacher_is_refused(logs: Logs) -> None:
    with pytest.raises(StreamNotFound, match="no teacher 'vit'"):
        SoftTargetReader(KafkaCluster(logs.settings), logs.stream, ["vit"])


WRONG: dict[str, Callable[[SoftTargets], dict[str, Any]]] = {
    "teacher": lambda one: {"teacher": "other"},
    "teacher_sha256": lambda one: {"teacher_sha256": "ab" * 32},
    "epoch": lambda one: {"epoch": one.epoch + 1},
    "view_seed": lambda one: {"view_seed": one.view_seed ^ 1},
    "sample IDs": lambda one: {"sample_ids": np.flip(one.sample_ids).copy()},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_label_of_something_else_is_never_handed_out(logs: Logs, what: str) -> None:
    right = label(logs.stream, "cnn", 0)
    logs.write("cnn", label(logs.stream, "cnn", 0, **WRONG[what](right)))
    with reading(logs) as reader:
        reader.seek(0, ())
        with pytest.raises(ManifestMismatch, match=rf"soft-targets\.cnn/0@0: .*{what}"):
            reader.next(0, Patience())


def test_a_late_partition_does_not_fill_the_memory(
    kafka_settings: KafkaSettings, fresh_name: FreshName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student_trainer.sources.reader._HELD_BYTES", 0)
    monkeypatch.setattr("student_trainer.sources.reader._MIN_FETCH_BYTES", 1)
    monkeypatch.setattr("student_trainer.sources.reader.teacher_record_bytes", lambda manifest, teacher: 400)
    stream = make_stream(fresh_name("stream"), ("cnn",), num_samples=4000)
    with logs_of(kafka_settings, stream) as logs, reading(logs) as reader:
        late = [sequence for sequence in range(600) if sequence % 3 == 1]
        logs.write("cnn", *(sequence for sequence in range(600) if sequence % 3 != 1))
        reader.seek(0, ())
        assert read(reader, range(1)) == [(0,)]
        with pytest.raises(Starved):
            reader.next(1, Starvation(StarveSettings(warning=1.0, timeout=2.0), stream.manifest.stream))
        assert reader.num_records < 60
        logs.write("cnn", *late)
        assert read(reader, range(1, 600)) == [(sequence,) for sequence in range(1, 600)]


@pytest.fixture
def collected(caplog: pytest.LogCaptureFixture, eventually: Any) -> Iterator[None]:
    """kafka-python leaves the socket of each connection that is refused to the garbage collector."""
    caplog.set_level(logging.CRITICAL, "kafka")  # a captured record keeps its exception, and that the sockets
    yield
    # A lookout that is in the middle of a question closes its clients when that is over.
    eventually(lambda: "lookout" not in {thread.name for thread in threading.enumerate()}, 30, "the lookout's end")
    gc.collect()  # here, where the warning is expected: what the test still held is free by now


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_broker_that_is_away_is_waited_for(own_broker: LocalBroker, fresh_name: FreshName) -> None:
    settings = KafkaSettings(own_broker.bootstrap_servers)
    with logs_of(settings, make_stream(fresh_name("stream"), ("cnn",))) as logs:
        logs.write("cnn", *range(6))
        with reading(logs) as reader:
            reader.seek(0, ())
            assert read(reader, range(6)) == [(sequence,) for sequence in range(6)]
            own_broker.kill()
            with pytest.raises(Starved, match=r"Kafka gives no answer \(.*is it running\?"):
                reader.next(6, Starvation(StarveSettings(warning=5.0, timeout=6.0), logs.stream.manifest.stream))
            own_broker.start()
            logs.write("cnn", *range(6, 20))
            assert read(reader, range(6, 20)) == [(sequence,) for sequence in range(6, 20)]
