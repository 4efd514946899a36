"""What could not be labelled, as `distillog letters` tells it: each letter once, and one in full."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from small_streams import small_stream
from support.processes import Distillog
from support.streams import teacher_record

from pipeline import letters
from pipeline.create import add_teacher
from pipeline.kafka.clients import new_admin
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.letters import Letters, kind_of, list_letters, read_letter
from pipeline.names import dead_letters_topic, work_orders_topic
from pipeline.remove import remove_teacher
from pipeline.streams import Stream, open_stream
from schemas.errors import BrokerUnavailable, ConfigError, StreamChanged, StreamNotFound
from schemas.records import DeadLetter

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]

RAW = bytes(range(40))


@pytest.fixture
def stream(kafka_settings: KafkaSettings, fresh_name: Name) -> Stream:
    """With the teachers "cnn" and "vit"."""
    made = small_stream(kafka_settings, fresh_name("s"))
    for name in ("cnn", "vit"):
        add_teacher(kafka_settings, made, teacher_record(name=name, stream_id=made.manifest.stream_id))
    return open_stream(kafka_settings, made.manifest.stream)


def letter(stream: Stream, offset: int, row: int | None, reason: str, **changes: Any) -> DeadLetter:
    """Of teacher "cnn", partition 2; of a sample whose ID is its row."""
    topic = work_orders_topic(stream.manifest.stream)
    made = DeadLetter(stream.manifest.stream_id, "cnn", topic, 2, offset, offset, row, row, reason, None)
    return replace(made, **changes)


@contextmanager
def post(settings: KafkaSettings, stream: Stream) -> Iterator[Callable[..., None]]:
    """Writes letters, and whatever else, as a worker of a name; waits for the last of them."""
    topic = dead_letters_topic(stream.manifest.stream)
    with closing(KafkaCluster(settings).appender(max_record_bytes=1 << 20, batch_bytes=1 << 16)) as appender:

        def write(worker: str | None, *values: DeadLetter | bytes) -> None:
            headers = [("worker", worker.encode())] if worker else []
            raws = [value if isinstance(value, bytes) else value.encode() for value in values]
            sent = [appender.append(topic, 0, raw, headers=headers) for raw in raws]
            assert all(one.result(60.0) >= 0 for one in sent)

        yield write


@pytest.fixture
def posted(kafka_settings: KafkaSettings, stream: Stream) -> Stream:
    """Four letters of "cnn", two of them twice, one of "vit", and three records that are no letters of this stream."""
    cut = [letter(stream, 7, row, f"train/{row}.jpg: OSError: cut at byte {100 * row}") for row in (0, 3)]
    not_finite = letter(stream, 9, 3, "the teacher's output is not finite")
    whole = letter(stream, 4, None, "no Avro", sequence=None, raw=RAW)
    with post(kafka_settings, stream) as write:
        write("a", *cut, whole)
        write("b", *cut, not_finite)
        write(None, replace(not_finite, teacher="vit"))
        write("b", b"junk", letter(stream, 1, 1, "x", stream_id="another"), letter(stream, 1, 1, "x", topic="other"))
    return stream


def listed(settings: KafkaSettings, stream: Stream, **options: Any) -> Letters:
    return list_letters(KafkaCluster(settings), stream, **{"most": 10, "timeout": 60.0} | options)


def histograms(found: Letters) -> Mapping[str, Mapping[str, int] | Mapping[int, int]]:
    return {name: dict(getattr(found, name).commonest) for name in ("reasons", "samples", "workers", "teachers")}


def test_a_letter_that_workers_wrote_again_counts_once(kafka_settings: KafkaSettings, posted: Stream) -> None:
    found = listed(kafka_settings, posted)
    assert (found.num_letters, found.num_of_records, found.num_repeated, found.num_foreign) == (5, 1, 2, 3)
    assert histograms(found) == {
        "reasons": {"*: OSError: cut at byte *": 2, "the teacher's output is not finite": 2, "no Avro": 1},
        "samples": {3: 3, 0: 1},
        "workers": {"a": 3, "b": 1, "(unknown)": 1},
        "teachers": {"cnn": 4, "vit": 1},
    }
    assert found.first_of == {"*: OSError: cut at byte *": 0, "no Avro": 2, "the teacher's output is not finite": 5}


def test_letters_of_one_teacher_or_sample_are_counted_alone(kafka_settings: KafkaSettings, posted: Stream) -> None:
    assert histograms(listed(kafka_settings, posted, teacher="vit"))["workers"] == {"(unknown)": 1}
    of_three = listed(kafka_settings, posted, sample=3, teacher="cnn")
    assert of_three.first_of == {"*: OSError: cut at byte *": 1, "the teacher's output is not finite": 5}
    assert listed(kafka_settings, posted, sample=0).num_letters == 1
    with pytest.raises(StreamNotFound, match="has no teacher 'dnn'"):
        listed(kafka_settings, posted, teacher="dnn")


def test_letters_of_a_teacher_that_was_removed_can_be_read(kafka_settings: KafkaSettings, posted: Stream) -> None:
    remove_teacher(kafka_settings, posted, "vit")
    now = open_stream(kafka_settings, posted.manifest.stream)
    assert listed(kafka_settings, now, teacher="vit").num_letters == 1


def test_the_commonest_stand_first_and_the_others_are_counted(
    kafka_settings: KafkaSettings, posted: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = listed(kafka_settings, posted, most=1)
    assert found.samples.commonest == ((3, 3),)
    assert (found.samples.num_more, found.workers.num_more, found.reasons.num_more) == (1, 2, 2)
    monkeypatch.setattr(letters, "_MOST_KINDS", 1)
    found = listed(kafka_settings, posted)
    assert histograms(found)["workers"] == {"a": 3, "(others)": 2}
    assert found.first_of == {"*: OSError: cut at byte *": 0, "(others)": 2}


def test_a_letter_is_found_by_its_number(kafka_settings: KafkaSettings, posted: Stream) -> None:
    cluster = KafkaCluster(kafka_settings)
    found = read_letter(cluster, posted, 2)
    assert (found.number, found.worker, found.letter.raw) == (2, "a", RAW)
    assert found.address == f"{work_orders_topic(posted.manifest.stream)}/2@4"
    assert read_letter(cluster, posted, 6).letter.teacher == "vit"
    assert read_letter(cluster, posted, 6).worker == ""
    for number, why in ((7, "no Avro record"), (8, "a letter of another stream"), (10, "nothing has that number")):
        with pytest.raises(ConfigError, match=rf"has no letter {number} \(.*{why}.*see `distillog letters list"):
            read_letter(cluster, posted, number)


def test_letters_that_retention_removed_are_said_to_be_gone(kafka_settings: KafkaSettings, posted: Stream) -> None:
    admin = new_admin(kafka_settings)
    try:
        admin.delete_records({TopicPartition(dead_letters_topic(posted.manifest.stream), 0): 5})
    finally:
        admin.close()
    found = listed(kafka_settings, posted)
    assert (found.num_removed, found.num_letters, found.num_repeated, found.num_foreign) == (5, 2, 0, 3)
    with pytest.raises(ConfigError, match="has no letter 4"):
        read_letter(KafkaCluster(kafka_settings), posted, 4)


def test_a_read_has_an_end(kafka_settings: KafkaSettings, posted: Stream) -> None:
    with pytest.raises(BrokerUnavailable, match=r"dead-letters/0: not read to its end \(offset 10\) within 0 s"):
        listed(kafka_settings, posted, timeout=0.0)


def test_a_topic_that_somebody_deleted_is_named(kafka_settings: KafkaSettings, stream: Stream) -> None:
    admin = new_admin(kafka_settings)
    try:
        admin.delete_topics([dead_letters_topic(stream.manifest.stream)])
    finally:
        admin.close()
    for look in (lambda: listed(kafka_settings, stream), lambda: read_letter(KafkaCluster(kafka_settings), stream, 0)):
        with pytest.raises(
            StreamChanged, match=r"dead-letters does not exist, .* run the same `distillog topics create"
        ):
            look()


KINDS = {
    "n01/img_7.jpg: OSError: cut at byte 9": "*: OSError: cut at byte *",
    "/data/a b/c.png: bad": "* *: bad",
    "no image: <_io.BytesIO object at 0x7fa2b0>": "no image: <_io.BytesIO object at *>",
    "KeyError: 'birds-17'": "KeyError: *",
    "Input/output error, errno 5": "Input/output error, errno *",
    "sample 17's row isn't 2.5 wide": "sample *'s row isn't * wide",
    "": "",
}


@pytest.mark.parametrize("reason", KINDS)
def test_reasons_are_of_one_kind_that_differ_in_numbers_and_names(reason: str) -> None:
    assert kind_of(reason) == KINDS[reason]


def test_a_reason_of_any_length_has_its_kind_at_once() -> None:
    assert len(kind_of("/." * 500_000)) <= 1000
    assert len(kind_of("'" * 1_000_000)) <= 1000


def test_the_list_is_printed_for_people(distillog: Distillog, posted: Stream) -> None:
    name = posted.manifest.stream
    assert distillog.succeed("letters", "list", name, "--most", 2).splitlines() == [
        f"stream {name} has 5 dead letters (1 about whole records that are no work orders; 2 more records repeat "
        "letters; 3 are no letters of this stream)",
        "",
        "LETTERS  FIRST  REASON",
        "      2      0  *: OSError: cut at byte *",
        "      2      5  the teacher's output is not finite",
        "and 1 more",
        "",
        "LETTERS  SAMPLE",
        "      3       3",
        "      1       0",
        "",
        "LETTERS  WORKER",
        "      3  a",
        "      1  b",
        "and 1 more",
        "",
        "LETTERS  TEACHER",
        "      4  cnn",
        "      1  vit",
        "",
        f"FIRST is the first letter of its kind, for `distillog letters show {name} FIRST`; labels once written are "
        "never changed: mend the data, and label it under a new teacher name (`distillog topics add-teacher`)",
    ]
    found = json.loads(distillog.succeed("letters", "list", name, "--most", 1, "--json"))
    assert found == {
        "stream": name,
        "teacher": None,
        "sample": None,
        "letters": 5,
        "of_records": 1,
        "repeated": 2,
        "foreign": 3,
        "removed": 0,
        "reasons": {"commonest": [{"reason": "*: OSError: cut at byte *", "letters": 2, "first": 0}], "more": 2},
        "samples": {"commonest": [{"sample": 3, "letters": 3}], "more": 1},
        "workers": {"commonest": [{"worker": "a", "letters": 3}], "more": 2},
        "teachers": {"commonest": [{"teacher": "cnn", "letters": 4}], "more": 1},
    }
    lag = distillog.succeed("topics", "lag", name).splitlines()
    assert lag[0] == f"fed 0 of 20 orders, 10 dead letters (see `distillog letters list {name}`)"


def test_a_stream_without_letters_says_so(distillog: Distillog, stream: Stream) -> None:
    name = stream.manifest.stream
    assert distillog.succeed("letters", "list", name) == f"stream {name} has no dead letters\n"
    alone = distillog.succeed("letters", "list", name, "--teacher", "vit", "--sample", 0)
    assert alone == f"stream {name} has no dead letters of teacher vit about sample 0\n"
    assert json.loads(distillog.succeed("letters", "list", name, "--json"))["letters"] == 0
    distillog.refuse("letters", "show", name, 0, words=("has no letter 0 (nothing has that number)",))


def test_one_letter_is_printed_in_full(distillog: Distillog, posted: Stream) -> None:
    name = posted.manifest.stream
    assert distillog.succeed("letters", "show", name, 1).splitlines() == [
        "letter   1",
        f"address  {name}.work-orders/2@7",
        "teacher  cnn",
        "worker   a",
        "order    7",
        "row      3",
        "sample   3",
        "reason   train/3.jpg: OSError: cut at byte 300",
        "",
        "labels once written are never changed: mend the data, and label it under a new teacher name (`distillog "
        "topics add-teacher`)",
    ]
    assert distillog.succeed("letters", "show", name, 2).splitlines()[4:] == [
        "reason   no Avro",
        "raw      40 bytes",
        "       0 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f 10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f",
        "      32 20 21 22 23 24 25 26 27",
    ]
    found = json.loads(distillog.succeed("letters", "show", name, 2, "--json"))
    assert (found["letter"], found["order"], found["raw"]) == (2, None, RAW.hex())


def test_raw_bytes_go_to_a_new_file_and_to_no_other(distillog: Distillog, posted: Stream, tmp_path: Path) -> None:
    name, file = posted.manifest.stream, tmp_path / "raw.bin"
    assert f"40 bytes, written to {file}" in distillog.succeed("letters", "show", name, 2, "--out", file)
    assert file.read_bytes() == RAW
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for taken in (file, tmp_path, tmp_path / "link", tmp_path / "pipe"):
        distillog.refuse("letters", "show", name, 2, "--out", taken, words=(f"{taken}: exists, and nothing is over",))
    for nowhere in (tmp_path / "no" / "raw.bin", tmp_path / ("x" * 300)):
        distillog.refuse("letters", "show", name, 2, "--out", nowhere, words=("cannot be written",))
    distillog.refuse("letters", "show", name, 1, "--out", tmp_path / "row", words=("carries no bytes: its sample, 3",))
    assert {path.name for path in tmp_path.iterdir()} == {"raw.bin", "link", "pipe"}


def test_what_a_terminal_would_obey_is_spelled_out(
    distillog: Distillog, kafka_settings: KafkaSettings, stream: Stream
) -> None:
    name = stream.manifest.stream
    with post(kafka_settings, stream) as write:
        write("w\x1b[2J", letter(stream, 0, 0, "red \x1b[31m\nerror: \x9b2J " + "long " * 100))
    for said in (distillog.succeed("letters", "list", name), distillog.succeed("letters", "show", name, 0)):
        assert all(char.isprintable() for char in said.replace("\n", ""))
        assert "w\\x1b[" in said
        assert not any(line.startswith("error") for line in said.splitlines())
    assert max(map(len, distillog.succeed("letters", "list", name).splitlines()[:-1])) < 120
