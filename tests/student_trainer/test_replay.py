"""Captured labels that become a stream again: equal in value, of a stream of its own that says whose they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from captured_streams import NUM_ORDERS, digits_logs, labels
from reader_logs import Logs, label
from support.captures import captured
from support.processes import Distillog
from support.small_runs import report, run_file, weights
from support.streams import records

from pipeline.captured.folder import CapturedFolder
from pipeline.kafka.cluster import KafkaCluster
from pipeline.names import REPLAY_OF, soft_targets_topic, work_orders_topic
from pipeline.replay.copying import Copied, _Copying, copy_labels
from pipeline.replay.target import ReplayOptions, open_target
from pipeline.streams import Stream, delete_stream
from schemas.errors import DecodeError, StreamChanged, StreamConflict
from schemas.records import SoftTargets, WorkOrder

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture
def logs(distillog: Distillog, fresh_name: Callable[[str], str]) -> Iterator[Logs]:
    with digits_logs(distillog.settings, fresh_name("first")) as made:
        yield made


@pytest.fixture
def again(distillog: Distillog, fresh_name: Callable[[str], str]) -> Iterator[str]:
    """The name of a stream that is removed in the end."""
    name = fresh_name("again")
    yield name
    delete_stream(distillog.settings, name)


def capture(distillog: Distillog, stream: str, folder: Path, *teachers: str) -> Path:
    distillog.succeed("capture", stream, folder, *(f"--teacher={each}" for each in teachers), "--quiet")
    return folder


def content(folder: Path, teacher: str) -> list[Any]:
    """Of each captured order all but the stream's ID, as bytes and numbers."""
    files = CapturedFolder(folder).teacher(teacher)
    found = []
    for sequence in range(files.num_orders):
        one = SoftTargets.decode(files.read(sequence).value, "")
        columns = [{name: each.tobytes() for name, each in output.columns.items()} for output in one.outputs]
        rows = one.sample_ids.tolist(), None if one.kept_rows is None else one.kept_rows.tolist()
        names = [(each.name, each.codec) for each in one.outputs]
        found.append((one.sequence, one.epoch, one.view_seed, rows, one.teacher_sha256, names, columns))
    files.close()
    return found


@pytest.mark.faults
@pytest.mark.short
def test_a_stream_made_of_files_gives_equal_labels_and_weights_and_says_whose_they_are(
    logs: Logs, distillog: Distillog, again: str, tmp_path: Path
) -> None:
    stream, runs = logs.stream.manifest.stream, tmp_path / "runs"
    logs.write("t", *labels(logs, "t", *range(8), *range(4, NUM_ORDERS)))  # 4 to 7 come twice
    logs.write("u", *labels(logs, "u", *range(30)))
    folder = capture(distillog, stream, tmp_path / "labels", "t", "u")
    made = json.loads(distillog.succeed("replay", folder, "--to", again, "--partitions", "3", "--json"))
    stream_id = logs.stream.manifest.stream_id
    assert made["replay_of"] == {"stream": stream, "stream_id": stream_id}
    assert made["stream_id"] != stream_id
    assert made["teachers"] == {"t": {"orders": 41, "new": 41}, "u": {"orders": 30, "new": 30}}
    assert (made["created"], made["reached"], made["new_orders"]) == (True, NUM_ORDERS, NUM_ORDERS)
    assert json.loads(distillog.succeed("replay", folder, "--to", again, "--json"))["new_orders"] == 0

    third = capture(distillog, again, tmp_path / "third", "t", "u")
    assert [content(third, each) for each in "tu"] == [content(folder, each) for each in "tu"]
    first = records(distillog.settings, soft_targets_topic(again, "t"))[2][1]  # order 5, at 4 and 6 of its partitions
    assert dict(first.headers) == {REPLAY_OF: f"{soft_targets_topic(stream, 't')}/1@1".encode()}
    described = distillog.succeed("topics", "describe", again)
    assert f"labels of    {stream} ({stream_id})" in described
    assert "fed 41 of 41 orders" in described
    assert "teacher u: 30 orders labelled, lag 11" in described

    log, copy = run_file(tmp_path, stream, "log"), run_file(tmp_path, again, "copy")
    for file in (log, copy):
        distillog.succeed("runs", "start", file, "--folder", runs, "--quiet")
    assert weights(runs, "copy") == weights(runs, "log")
    assert report(runs, "copy")["replay_of"] == [{"stream": stream, "stream_id": stream_id}]
    assert f"{stream} ({stream_id})" in distillog.succeed("runs", "show", "copy", "--folder", runs)


def test_a_replay_that_was_cut_short_goes_on_also_with_what_was_captured_since(
    logs: Logs, distillog: Distillog, again: str, tmp_path: Path
) -> None:
    """The cluster fails in the middle of a record: what is acknowledged stays, and labels are there before orders."""
    settings, stream = distillog.settings, logs.stream.manifest.stream
    logs.write("t", *labels(logs, "t", *range(30)))
    folder = capture(distillog, stream, tmp_path / "labels", "t")
    target = open_target(settings, again, CapturedFolder(folder), ReplayOptions(partitions=2))
    block = (folder / "t-00000.avro").read_bytes()
    (folder / "t-00000.avro").write_bytes(block[:-1] + bytes([block[-1] ^ 1]))
    with pytest.raises(DecodeError, match="order 29 is not what its checksum says"):
        copy_labels(KafkaCluster(settings), target)
    topics = soft_targets_topic(again, "t"), work_orders_topic(again)
    there = [sum(map(len, records(settings, topic).values())) for topic in topics]
    assert there[1] == 0
    assert there[0] >= 27
    (folder / "t-00000.avro").write_bytes(block)
    logs.write("t", *labels(logs, "t", *range(30, NUM_ORDERS)))
    capture(distillog, stream, folder, "t")
    said = distillog.succeed("replay", folder, "--to", again, "--rate", "1000", "--quiet")
    assert f"gone on with stream {again}" in said
    assert "41 of 41 orders are captured" in said
    for topic, kind in zip(topics, (SoftTargets, WorkOrder), strict=True):
        for number, found in records(settings, topic).items():
            sequences = [kind.decode(each.value, "").sequence for each in found]
            assert list(dict.fromkeys(sequences)) == list(range(number, NUM_ORDERS, 2))
    assert content(capture(distillog, again, tmp_path / "third", "t"), "t") == content(folder, "t")


def test_a_replay_into_a_stream_that_is_not_its_own_is_refused(
    logs: Logs, distillog: Distillog, again: str, tmp_path: Path
) -> None:
    settings, stream = distillog.settings, logs.stream.manifest.stream
    logs.write("t", *labels(logs, "t", *range(5)))
    folder = capture(distillog, stream, tmp_path / "labels", "t")
    distillog.refuse("replay", folder, "--to", stream, words=("exists and is no replay", "give another name"))
    for number in (0, 257):
        words = (f"--partitions must be between 1 and 256, not {number}",)
        distillog.refuse("replay", folder, "--to", again, "--partitions", number, words=words)
    assert again not in distillog.succeed("topics", "list")
    distillog.succeed("replay", f"file://{folder}", "--to", again, "--quiet")
    words = ("has 4 partitions, asked are 3", "leave --partitions out")
    distillog.refuse("replay", folder, "--to", again, "--partitions", "3", words=words)
    copied = capture(distillog, again, tmp_path / "copied")
    distillog.refuse("replay", copied, "--to", again, words=(f"a replay of {stream}", f"these are labels of {again}"))

    # A worker goes on where the copy ended, and what is captured later no longer fits.
    target = open_target(settings, again, CapturedFolder(folder), ReplayOptions())
    theirs = Logs(settings, target.stream, logs.admin, logs.producer)
    theirs.write("t", *labels(theirs, "t", 5))
    logs.write("t", *labels(logs, "t", *range(5, 12)))
    capture(distillog, stream, folder, "t")
    with pytest.raises(StreamConflict, match=r"/1: workers of teacher 't' have labelled orders .* before order 9"):
        copy_labels(KafkaCluster(settings), open_target(settings, again, CapturedFolder(folder), ReplayOptions()))


def test_a_replay_goes_on_beside_workers_that_label_again_what_was_copied(
    logs: Logs, distillog: Distillog, again: str, tmp_path: Path
) -> None:
    """They were there before the first label, and so repeat each: no student reads theirs."""
    settings, path = distillog.settings, tmp_path / "labels"

    def replay(first: int, behind: int) -> Stream:
        folder = CapturedFolder(captured(path, logs.stream, labels(logs, "t", *range(first, behind))))
        target = open_target(settings, again, folder, ReplayOptions())
        copy_labels(KafkaCluster(settings), target)
        return target.stream

    theirs = Logs(settings, replay(0, 12), logs.admin, logs.producer)
    theirs.write("t", *(label(theirs.stream, "t", sequence) for sequence in range(10)))
    replay(12, 20)
    for number, found in records(settings, soft_targets_topic(again, "t")).items():
        copied = [SoftTargets.decode(each.value, "").sequence for each in found if REPLAY_OF in dict(each.headers)]
        assert copied == list(range(number, 20, 4))


def test_a_replay_says_when_workers_came_before_it(
    logs: Logs, distillog: Distillog, again: str, tmp_path: Path
) -> None:
    """Somebody fed meanwhile: what is copied behind their labels is nobody's."""
    settings = distillog.settings
    folder = CapturedFolder(captured(tmp_path / "labels", logs.stream, labels(logs, "t", *range(12))))
    target = open_target(settings, again, folder, ReplayOptions())
    theirs = Logs(settings, target.stream, logs.admin, logs.producer)
    copying = _Copying(KafkaCluster(settings), target, None, Event(), lambda copied: None)
    there = copying._there()
    theirs.write("t", *(label(theirs.stream, "t", sequence) for sequence in range(12)))
    copying._there = lambda: there  # type: ignore[method-assign]
    with closing(copying.guard), pytest.raises(StreamConflict, match=r"t/0: workers .* before order 12 that were to"):
        copying.run()


def test_a_replay_says_when_its_stream_was_deleted_while_the_last_orders_were_written(
    logs: Logs, distillog: Distillog, again: str, tmp_path: Path
) -> None:
    settings = distillog.settings
    folder = CapturedFolder(captured(tmp_path / "labels", logs.stream, labels(logs, "t", *range(5))))

    def at_the_end(copied: Copied) -> None:
        if copied.reached == copied.num_orders:
            delete_stream(settings, again)

    target = open_target(settings, again, folder, ReplayOptions())
    with pytest.raises(StreamChanged, match=f"stream {again} was deleted"):
        copy_labels(KafkaCluster(settings), target, progress=at_the_end)
    open_target(settings, again, folder, ReplayOptions())
