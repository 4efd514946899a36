"""Runs over streams whose teacher moves while they train: live, from files, over a replay, to the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from captured_streams import NUM_ORDERS, digits_logs, labels, without_kafka
from reader_logs import Logs
from support.generations import EVERY, RUN_ID, by, generation, publisher
from support.processes import Distillog
from support.small_runs import run_file, weights

from pipeline.captured.contents import Contents
from pipeline.captured.folder import CapturedFolder
from pipeline.generations import claim_teacher, publish_generation
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.replay.copying import copy_labels
from pipeline.replay.target import ReplayOptions, open_target
from pipeline.status import describe
from pipeline.streams import Stream, delete_stream, open_stream
from schemas.records import SoftTargets
from student_trainer.capture import capture
from student_trainer.own_loop.labelled_batches import labelled_batches
from student_trainer.run.settings import StarveSettings
from student_trainer.sources.base import Cursor
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture
def logs(distillog: Distillog, fresh_name: Callable[[str], str]) -> Iterator[Logs]:
    with digits_logs(distillog.settings, fresh_name("moving")) as made:
        yield made


def due(logs: Logs, *sequences: int) -> list[SoftTargets]:
    """Labels of t, each by the generation before the one that is due."""
    stream = logs.stream
    return [by(one, stream, max(0, one.sequence // EVERY - 1)) for one in labels(logs, "t", *sequences)]


def published(logs: Logs, *numbers: int) -> None:
    for number in numbers:
        publish_generation(logs.settings, logs.stream, generation(logs.stream, "t", number))


def test_a_source_follows_its_teacher_and_says_by_which_generation_each_order_is(logs: Logs) -> None:
    name = logs.stream.manifest.stream
    claim_teacher(logs.settings, logs.stream, publisher(logs.stream, "t"))
    settings = StreamSettings(name, ("t", "u"), starve=StarveSettings(5.0, 60.0))
    source = StreamSource(logs.settings, settings)
    assert source.publishers == {"t": publisher(logs.stream, "t")}
    assert {one: each.newest for one, each in source.lineages.items()} == {"t": 0, "u": 0}
    logs.write("u", *labels(logs, "u", *range(NUM_ORDERS)))
    orders = source.orders(Cursor.start())
    found = []
    with closing(orders):
        for first in range(0, NUM_ORDERS, EVERY):
            if first >= 2 * EVERY:
                published(logs, first // EVERY - 1)
            numbers = range(first, min(first + EVERY, NUM_ORDERS))
            logs.write("t", *due(logs, *numbers))
            for sequence in numbers:
                order = next(orders)
                assert (order.sequence, order.generations["u"]) == (sequence, 0)
                found.append(order.generations["t"])
    source.close()
    assert found == [max(0, sequence // EVERY - 1) for sequence in range(NUM_ORDERS)]


@pytest.fixture
def again(distillog: Distillog, fresh_name: Callable[[str], str]) -> Iterator[str]:
    """The name of a stream that is removed in the end."""
    name = fresh_name("again")
    yield name
    delete_stream(distillog.settings, name)


def captured(logs: Logs, folder: Path) -> int:
    """Capture t, and return how many generations the folder has then."""
    capture(KafkaCluster(logs.settings), open_stream(logs.settings, logs.stream.manifest.stream), folder, ["t"])
    return len(Contents.read(folder).teachers["t"].generations)


def replayed(logs: Logs, folder: Path, again: str) -> Stream:
    """Copy a folder into another stream, of 3 partitions."""
    target = open_target(logs.settings, again, CapturedFolder(folder), ReplayOptions(partitions=3))
    copy_labels(KafkaCluster(logs.settings), target)
    return open_stream(logs.settings, again)


def test_captures_and_replays_take_the_generations_along_and_give_the_same_batches(
    logs: Logs, again: str, tmp_path: Path
) -> None:
    stream, folder = logs.stream.manifest.stream, tmp_path / "labels"
    claim_teacher(logs.settings, logs.stream, publisher(logs.stream, "t"))
    published(logs, *range(1, NUM_ORDERS // EVERY))
    values = due(logs, *range(NUM_ORDERS))
    late = [by(value, logs.stream, 0) for value in values[20:25]]  # a zombie's, behind the first copies
    logs.write("t", *values[:30], *late)
    newest = (NUM_ORDERS - 1) // EVERY - 1
    for there in (6, newest):
        assert captured(logs, folder) == there
        copied = replayed(logs, folder, again)
        lineage = copied.lineage("t")
        assert lineage.publisher == replace(publisher(logs.stream, "t"), stream_id=copied.manifest.stream_id)
        wanted = [generation(logs.stream, "t", number).sha256 for number in range(1, there + 1)]
        assert [one.sha256 for one in lineage.generations] == wanted
        logs.write("t", *values[30:])
    whole = batches(logs.settings, stream)
    assert len(whole) == sum(len(value.sample_ids) for value in values) // 12
    assert batches(logs.settings, again) == batches(logs.settings, None, folder) == whole
    described = describe(logs.settings, open_stream(logs.settings, stream)).as_dict()
    told, other = described["teachers"][:2]
    assert (told["generations"], told["newest_generation"]["step"]) == (newest, 10 * newest)
    assert told["publisher"] == {"run": "online", "run_id": RUN_ID, "every": EVERY}
    assert (other["publisher"], other["generations"], other["newest_generation"]) == (None, 0, None)


def batches(settings: KafkaSettings, stream: str | None, files: Path | None = None) -> list[Any]:
    """What a loop of one's own gets."""
    servers = {} if files else {"bootstrap_servers": settings.bootstrap_servers}
    found = labelled_batches(stream, files=files, teachers="t", batch_size=12, device="cpu", **servers)
    return [(batch.sample_ids.tolist(), batch.targets["t"]["logits"].logits.tolist()) for batch in found]


@pytest.mark.faults
@pytest.mark.short
def test_one_log_of_generations_gives_one_student_live_from_files_and_over_a_replay(
    logs: Logs, distillog: Distillog, again: str, tmp_path: Path
) -> None:
    stream, runs, folder = logs.stream.manifest.stream, tmp_path / "runs", tmp_path / "labels"
    claim_teacher(logs.settings, logs.stream, publisher(logs.stream, "t"))
    published(logs, *range(1, NUM_ORDERS // EVERY))
    logs.write("t", *due(logs, *range(NUM_ORDERS)))
    distillog.succeed("capture", stream, folder, "--teacher=t", "--quiet")
    distillog.succeed("replay", folder, "--to", again, "--quiet")
    for name, of in (("log", stream), ("copy", again)):
        distillog.succeed("runs", "start", run_file(tmp_path, of, name), "--folder", runs, "--quiet")
    files = run_file(tmp_path, stream, "files", data={"files": str(folder)})
    files.write_text(files.read_text().replace('source = "stream"', 'source = "files"'))
    without_kafka("runs", "start", files, "--folder", runs, "--quiet")
    assert weights(runs, "copy") == weights(runs, "log") == weights(runs, "files")
    newest = generation(logs.stream, "t", NUM_ORDERS // EVERY - 1)
    described = distillog.succeed("topics", "describe", stream)
    assert f"run online (run ID {RUN_ID}) publishes for it every {EVERY} orders" in described
    assert f"generation 9, of order 36: {newest.model} (sha256 {newest.sha256})" in described
