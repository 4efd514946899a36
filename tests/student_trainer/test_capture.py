"""Capturing a stream, over the log in memory: what a student would read of it, up to where it ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from reader_logs import label, make_stream
from support.captures import captured, files_of
from support.generations import by, generation, publisher, write_generation, write_manifest_log
from support.memory_log import MemoryCluster

from pipeline.captured.capturing import CaptureForm
from pipeline.captured.contents import Contents
from pipeline.captured.folder import CapturedFolder
from pipeline.kafka.log import Commit
from pipeline.manifest_log import publisher_key
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, teacher_group, work_orders_topic
from pipeline.streams import Stream
from schemas.avro import REGISTRY
from schemas.commits import encode_next_sequence
from schemas.errors import BrokerUnavailable, ConfigError, ManifestMismatch, SequenceGap, StreamNotFound
from schemas.records import SoftTargets
from student_trainer.capture import CapturedOrders, capture

STREAM = make_stream("s", ("cnn", "vit"), schema_fingerprints=REGISTRY.fingerprints())
OTHER = make_stream("s", ("cnn",), schema_fingerprints=REGISTRY.fingerprints())
N, P = 20, STREAM.manifest.partitions
FORM = CaptureForm("null", 30_000)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR):
        yield


@pytest.fixture
def cluster() -> MemoryCluster:
    made = MemoryCluster()
    made.create_topic(work_orders_topic("s"), P)
    for topic in (manifest_topic("s"), dead_letters_topic("s")):
        made.create_topic(topic)
    for teacher in ("cnn", "vit"):
        made.create_topic(soft_targets_topic("s", teacher), P)
    write_manifest_log(made, STREAM)
    return made


def write(cluster: MemoryCluster, teacher: str, values: Iterable[int | SoftTargets | bytes]) -> None:
    for value in values:
        one = label(STREAM, teacher, value) if isinstance(value, int) else value
        raw = one if isinstance(one, bytes) else one.encode(STREAM.manifest.schema_fingerprints)
        partition = one.sequence % P if isinstance(one, SoftTargets) else 0
        cluster.write(soft_targets_topic("s", teacher), partition, raw)


def take(cluster: MemoryCluster, folder: Path, *teachers: str, **options: Any) -> dict[str, CapturedOrders]:
    return {each.teacher: each for each in capture(cluster, STREAM, folder, teachers, FORM, **options)}


def sequences(folder: Path, teacher: str) -> list[tuple[int, int]]:
    """Sequence and offset of all orders that were captured."""
    files = CapturedFolder(folder).teacher(teacher)
    found = [files.read(each) for each in range(files.num_orders)]
    files.close()
    return [(SoftTargets.decode(each.value, each.address).sequence, each.offset) for each in found]


def test_first_copies_are_captured_and_nothing_else_of_what_zombies_leave(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    write(cluster, "cnn", [b"junk", label(OTHER, "cnn", 0), 0, 1, 2, 6, 3, 4, 5, 3, 6, 9, 0, *range(7, N)])
    write(cluster, "vit", [*range(10), *range(4, N)])
    found = take(cluster, tmp_path)
    assert {name: (each.num_orders, each.num_new) for name, each in found.items()} == {"cnn": (N, N), "vit": (N, N)}
    assert found["cnn"].num_bytes == sum(path.stat().st_size for path in tmp_path.glob("cnn-*.avro"))
    # In partition 0 lie junk, another stream's, 0, 6 too early, 3, 3 and 6 again: the first 6 that counts at 6.
    assert sequences(tmp_path, "cnn")[:7] == [(0, 2), (1, 0), (2, 0), (3, 4), (4, 1), (5, 1), (6, 6)]
    before = files_of(tmp_path)
    assert {each.num_new for each in take(cluster, tmp_path).values()} == {0}
    assert files_of(tmp_path) == before


def test_what_is_there_is_captured_up_to_the_end_of_the_sequence_and_the_rest_later(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    """As in one capture of all, byte by byte; one partition may be ahead of the others, and a teacher of the others."""
    write(cluster, "cnn", [0, 1, 2, 3, 4, 6])
    write(cluster, "vit", range(N))
    found = take(cluster, tmp_path / "c")
    assert [found[name].num_orders for name in ("cnn", "vit")] == [5, N]
    write(cluster, "cnn", [5, *range(7, N)])
    assert take(cluster, tmp_path / "c", "cnn") == {"cnn": CapturedOrders("cnn", N, 15, found_bytes(tmp_path / "c"))}
    take(cluster, tmp_path / "whole")
    assert files_of(tmp_path / "c") == files_of(tmp_path / "whole")


def num_listed(folder: Path) -> int:
    with suppress(ConfigError, KeyError):
        return Contents.read(folder).teachers["cnn"].num_orders
    return -1


def found_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("cnn-*.avro"))


def test_a_capture_that_goes_on_takes_no_copy_that_lies_before_its_turn(cluster: MemoryCluster, tmp_path: Path) -> None:
    """A zombie's 12 lies where 12 could be first, and before 6 and 9, so that a reader takes the one behind those."""
    write(cluster, "cnn", [*range(6), 0, 3, 12, *range(6, 12)])
    assert take(cluster, tmp_path / "cut", "cnn")["cnn"].num_orders == 12
    write(cluster, "cnn", range(12, N))
    take(cluster, tmp_path / "cut", "cnn")
    assert dict(sequences(tmp_path / "cut", "cnn"))[12] == 7
    take(cluster, tmp_path / "whole", "cnn")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_a_hole_of_one_teacher_is_told_once_the_others_are_captured(cluster: MemoryCluster, tmp_path: Path) -> None:
    write(cluster, "cnn", [0, label(STREAM, "cnn", 1, teacher_sha256="ab" * 32)])
    write(cluster, "vit", range(N))
    with pytest.raises(ManifestMismatch, match=r"soft-targets\.cnn/1@0: teacher_sha256 is abab"):
        take(cluster, tmp_path)
    assert [len(sequences(tmp_path, name)) for name in ("cnn", "vit")] == [1, N]


def test_a_hole_is_proven_as_to_a_student_and_what_lies_before_it_is_captured(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    write(cluster, "cnn", [0, 1, 2, 3, 5])
    commit = Commit(2, encode_next_sequence(7))
    place = TopicPartition(work_orders_topic("s"), 1)
    cluster.admin().commit(teacher_group(STREAM.manifest, "cnn"), {place: commit})
    with pytest.raises(SequenceGap, match=r"soft-targets\.cnn/1: sequence 4 of teacher 'cnn' is missing"):
        take(cluster, tmp_path, "cnn")
    assert [sequence for sequence, _ in sequences(tmp_path, "cnn")] == [0, 1, 2, 3]


def test_a_label_of_another_model_is_refused_as_by_a_student(cluster: MemoryCluster, tmp_path: Path) -> None:
    write(cluster, "cnn", [0, label(STREAM, "cnn", 1, teacher_sha256="ab" * 32)])
    with pytest.raises(ManifestMismatch, match=r"soft-targets\.cnn/1@0: teacher_sha256 is abab"):
        take(cluster, tmp_path, "cnn")
    assert len(sequences(tmp_path, "cnn")) == 1


def test_a_capture_that_follows_ends_with_the_last_order_of_each_teacher(
    cluster: MemoryCluster, tmp_path: Path, eventually: Any
) -> None:
    write(cluster, "cnn", range(3))
    write(cluster, "vit", range(N))
    found: list[dict[str, CapturedOrders]] = []
    thread = threading.Thread(target=lambda: found.append(take(cluster, tmp_path, follow=True)))
    thread.start()
    eventually(lambda: num_listed(tmp_path) == 3, what="the list of what is there")
    assert thread.is_alive()
    write(cluster, "cnn", range(3, N))
    thread.join(20)
    assert [each.num_orders for each in found[0].values()] == [N, N]


def test_a_capture_that_follows_ends_when_told_and_lists_what_it_took(
    cluster: MemoryCluster, tmp_path: Path, eventually: Any
) -> None:
    write(cluster, "cnn", range(3))
    stop = threading.Event()
    thread = threading.Thread(target=lambda: take(cluster, tmp_path, "cnn", follow=True, stop=stop))
    thread.start()
    eventually(lambda: (tmp_path / "cnn.index").exists() and (tmp_path / "cnn.index").stat().st_size == 60)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert len(sequences(tmp_path, "cnn")) == 3


def test_faults_of_the_cluster_cost_nothing(cluster: MemoryCluster, tmp_path: Path) -> None:
    write(cluster, "cnn", range(N))
    captured(tmp_path / "whole", STREAM, [label(STREAM, "cnn", sequence) for sequence in range(N)], FORM)
    calls = iter(range(1000))

    def fault(call: str) -> None:
        if call == "poll" and next(calls) % 2 == 0:
            raise BrokerUnavailable("injected")

    cluster.faults = fault
    assert take(cluster, tmp_path / "c", "cnn")["cnn"].num_orders == N


def test_there_is_something_to_capture(cluster: MemoryCluster, tmp_path: Path) -> None:
    with pytest.raises(StreamNotFound, match="has no teacher 'bert'"):
        take(cluster, tmp_path, "bert")
    with pytest.raises(ConfigError, match="has no teacher, so there is nothing to capture"):
        capture(cluster, Stream(STREAM.manifest, {}), tmp_path / "c")
    assert not list(tmp_path.iterdir())


def begin(cluster: MemoryCluster) -> None:
    """Say that a run publishes for the teacher cnn."""
    cluster.write(manifest_topic("s"), 0, publisher(STREAM, "cnn").encode(), publisher_key("cnn"))


def test_the_generations_of_what_is_captured_are_listed_whenever_it_is_captured(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    """And no others: a folder that was captured in parts, with what was known then, ends as one of a single capture."""
    take(cluster, tmp_path / "c")
    begin(cluster)
    for number in (1, 2, 3, 4):
        write_generation(cluster, generation(STREAM, "cnn", number))
        newest = max(0, number - 2)
        write(cluster, "cnn", [by(label(STREAM, "cnn", s), STREAM, newest) for s in range(5 * number - 5, 5 * number)])
        if number > 2:
            take(cluster, tmp_path / "c", "cnn")
            assert len(Contents.read(tmp_path / "c").teachers["cnn"].generations) == newest
    take(cluster, tmp_path / "c")
    take(cluster, tmp_path / "whole")
    assert files_of(tmp_path / "c") == files_of(tmp_path / "whole")
    entries = Contents.read(tmp_path / "c").teachers
    assert entries["cnn"].publisher == publisher(STREAM, "cnn")
    assert entries["cnn"].generations == (generation(STREAM, "cnn", 1), generation(STREAM, "cnn", 2))
    assert (entries["vit"].publisher, entries["vit"].generations) == (None, ())
    files = CapturedFolder(tmp_path / "c").teacher("cnn")
    found = [SoftTargets.decode(files.read(each).value, "").generation for each in range(N)]
    assert found == [0] * 10 + [1] * 5 + [2] * 5
    files.close()


def test_who_publishes_is_listed_before_the_first_label_by_a_generation(cluster: MemoryCluster, tmp_path: Path) -> None:
    """It began behind the beginning of the capture; whoever trains on the files counts ages by it."""
    write(cluster, "cnn", range(N))
    begin(cluster)
    take(cluster, tmp_path, "cnn")
    entry = Contents.read(tmp_path).teachers["cnn"]
    assert (entry.publisher, entry.generations) == (publisher(STREAM, "cnn"), ())


def test_a_label_of_a_generation_that_nobody_published_is_not_captured(cluster: MemoryCluster, tmp_path: Path) -> None:
    begin(cluster)
    write(cluster, "cnn", [0, by(label(STREAM, "cnn", 1), STREAM, 1)])
    said = r"soft-targets\.cnn/1@0: generation is 1, and teacher 'cnn' has 0"
    with pytest.raises(ManifestMismatch, match=said):
        take(cluster, tmp_path, "cnn")
    assert len(sequences(tmp_path, "cnn")) == 1
