"""Who publishes for a teacher, and its generations: whatever the manifest's topic holds, all readers agree."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_streams import small_stream
from support.generations import EVERY, RUN_ID, generation, publisher
from support.memory_log import MemoryCluster
from support.streams import bare_manifest, teacher_record

from pipeline.create import add_teacher
from pipeline.generations import claim_teacher, copy_lineage, publish_generation
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.manifest_log import (
    MANIFEST_KEY,
    ManifestFold,
    ManifestFollower,
    ManifestLog,
    generation_key,
    publisher_key,
    read_manifest_log,
    removed_key,
    teacher_key,
)
from pipeline.names import manifest_topic
from pipeline.remove import remove_teacher
from pipeline.streams import Stream, open_stream
from schemas.avro import REGISTRY
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, DecodeError, EncodeError, StreamChanged, StreamConflict, StreamNotFound
from schemas.generation import age
from schemas.records import Generation, Lineage, Publisher

Record = tuple[bytes, bytes]

STREAM = Stream(bare_manifest(schema_fingerprints=REGISTRY.fingerprints()), {"t": teacher_record()})
BEGIN: list[Record] = [
    (MANIFEST_KEY, STREAM.manifest.encode()),
    (teacher_key("t"), STREAM.teachers["t"].encode()),
]
OTHER_ID = "f" * 16

publishers = st.builds(
    lambda run_id, every, stream_id: publisher(STREAM, "t", run_id=run_id, every=every, stream_id=stream_id),
    st.sampled_from((RUN_ID, "b" * 16)),
    st.sampled_from((2, EVERY)),
    st.sampled_from((STREAM.manifest.stream_id, STREAM.manifest.stream_id, OTHER_ID)),
)
generations = st.builds(
    lambda number, run_id, sequence, sha256, stream_id: generation(
        STREAM, "t", number, run_id=run_id, sequence=sequence * number, sha256=sha256, stream_id=stream_id
    ),
    st.integers(1, 4),
    st.sampled_from((RUN_ID, RUN_ID, "b" * 16)),
    st.sampled_from((2, EVERY, EVERY)),
    st.sampled_from(("aa" * 32, "bb" * 32)),
    st.sampled_from((STREAM.manifest.stream_id, STREAM.manifest.stream_id, OTHER_ID)),
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """What whoever may write the topic may write there."""
    made: Publisher | Generation = draw(st.one_of(publishers, generations, generations, generations))
    key = publisher_key("t") if isinstance(made, Publisher) else generation_key("t", made.number)
    value = made.encode()
    strange = draw(st.integers(0, 9))
    if strange == 0:
        key = draw(st.sampled_from((publisher_key("t"), generation_key("t", 2), generation_key("u", 1), b"else")))
    elif strange == 1:
        value = draw(st.sampled_from((b"", b"junk", value[:-1], value + b"x", value[:2] + b"\0" * 8 + value[10:])))
    return key, value


def folded(of: list[Record]) -> ManifestLog:
    fold = ManifestFold("s")
    for number, (key, value) in enumerate(of):
        fold.take(key, value, f"s.manifest/0@{number}")
    return fold.log()


def lineage(of: list[Record]) -> Lineage:
    return folded([*BEGIN, *of]).lineages["t"]


def said(record: Record) -> Publisher | Generation | None:
    """What a record says of this stream's teacher; None: nothing."""
    key, value = record
    kind = Publisher if key.startswith(b"publisher/") else Generation
    with suppress(DecodeError):
        made: Publisher | Generation = kind.decode(value, "")
        own = publisher_key("t") if isinstance(made, Publisher) else generation_key("t", made.number)
        return made if key == own and made.stream_id != OTHER_ID else None
    return None


@given(st.lists(records(), max_size=30))
def test_the_first_publisher_counts_and_of_its_generations_none_is_passed_over(written: list[Record]) -> None:
    found, made = lineage(written), list(map(said, written))
    by = next((each for each in made if isinstance(each, Publisher)), None)
    assert found.publisher == by
    at = made.index(by) if by else len(made)
    for number, one in enumerate(found.generations, 1):
        assert by is not None
        assert (one.number, one.run_id, one.sequence) == (number, by.run_id, number * by.every)
        at = next(place for place in range(at + 1, len(made)) if is_next(made[place], by, number))
        assert made[at] == one
    assert not any(is_next(each, by, found.newest + 1) for each in made[at + 1 :])


def is_next(made: Publisher | Generation | None, by: Publisher | None, number: int) -> bool:
    if by is None or not isinstance(made, Generation):
        return False
    return (made.run_id, made.number, made.sequence) == (by.run_id, number, number * by.every)


@given(st.lists(records(), max_size=30))
def test_whoever_has_read_less_knows_the_first_of_what_others_know(written: list[Record]) -> None:
    whole = lineage(written)
    for until in range(len(written)):
        part = lineage(written[:until])
        assert part.publisher in (None, whole.publisher)
        assert part.generations == whole.generations[: part.newest]
    # And whatever is written behind it, again or by others, takes nothing back.
    assert lineage([*written, *written]).generations[: whole.newest] == whole.generations


def test_a_record_that_cannot_be_read_is_dropped_and_hides_no_other() -> None:
    one, two = (generation(STREAM, "t", number) for number in (1, 2))
    unknown = (generation_key("t", 2), two.encode()[:2] + b"\x01" * 8 + two.encode()[10:])
    found = lineage(
        [
            (publisher_key("t"), publisher(STREAM, "t").encode()),
            (generation_key("t", 1), one.encode()),
            unknown,
            (generation_key("t", 2), b"junk"),
            (generation_key("t", 2), two.encode()),
        ]
    )
    assert found.generations == (one, two)


@pytest.mark.parametrize("name", ["run_id", "model"])
def test_what_a_terminal_would_obey_is_no_record_of_a_generation(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    by, one = publisher(STREAM, "t"), generation(STREAM, "t", 1)
    forged = replace(one, model="/x/\x1b[31mred\n" + 5_000 * "y") if name == "model" else replace(by, run_id="\x1b[2J")
    key = generation_key("t", 1) if name == "model" else publisher_key("t")
    with monkeypatch.context() as changed:
        changed.setattr(type(forged), "_problem", lambda self: "")
        raw = forged.encode()
    with pytest.raises(EncodeError, match=r"\\x1b\["):
        forged.encode()
    records = [(publisher_key("t"), by.encode()), (generation_key("t", 1), one.encode())]
    records.insert(1 if name == "model" else 0, (key, raw))
    found = lineage(records)
    assert (found.publisher, found.generations) == (by, (one,))
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 1_000


def test_a_stream_of_before_has_no_generations_whatever_is_written_there() -> None:
    pinned = {**REGISTRY.fingerprints(), "soft_targets": REGISTRY.fingerprint("soft_targets", 1).hex()}
    manifest = replace(STREAM.manifest, schema_fingerprints=pinned)
    written = [
        (MANIFEST_KEY, manifest.encode()),
        BEGIN[1],
        (publisher_key("t"), publisher(STREAM, "t").encode()),
        (generation_key("t", 1), generation(STREAM, "t", 1).encode()),
    ]
    assert folded(written).lineages["t"].publisher is None
    assert folded([BEGIN[0], *written[1:]]).lineages["t"].newest == 1


def test_a_removed_teacher_takes_its_generations_along() -> None:
    written = [*BEGIN, (publisher_key("t"), publisher(STREAM, "t").encode())]
    assert folded(written).lineages["t"].publisher == publisher(STREAM, "t")
    assert folded([*written, (removed_key("t"), BEGIN[1][1])]).lineages == {}


def test_a_teacher_is_another_model_in_each_generation_and_the_same_in_all_else() -> None:
    made = tuple(generation(STREAM, "t", number) for number in (1, 2))
    found = Lineage(STREAM.teachers["t"], publisher(STREAM, "t"), made)
    assert found.at(0) is STREAM.teachers["t"]
    second = found.at(2)
    assert second is not None
    assert (second.sha256, second.model_file, second.generation) == (made[1].sha256, "t-2.onnx", 2)
    assert (second.inputs, second.outputs) == (found.teacher.inputs, found.teacher.outputs)
    assert (found.at(3), found.at(-1)) == (None, None)
    assert [each and each.generation for each in map(found.of_model, (made[0].sha256, "0" * 64, "ee" * 32))] == [
        1,
        0,
        None,
    ]


@pytest.mark.parametrize(
    ("sequence", "number", "expected"), [(0, 0, 0), (3, 0, 0), (4, 0, 1), (4, 1, 0), (11, 0, 2), (11, 1, 1), (3, 1, -1)]
)
def test_ages_are_counted_in_generations(sequence: int, number: int, expected: int) -> None:
    assert age(EVERY, sequence, number) == expected


def test_a_follower_reads_only_what_is_new_and_notices_another_stream() -> None:
    cluster, topic = MemoryCluster(), manifest_topic("s")
    cluster.create_topic(topic)
    for key, value in [*BEGIN, (publisher_key("t"), publisher(STREAM, "t").encode())]:
        cluster.write(topic, 0, value, key)
    with closing(ManifestFollower(cluster, STREAM.manifest)) as follower:
        assert follower.read().lineages["t"].newest == 0
        for number in (1, 2):
            cluster.write(topic, 0, generation(STREAM, "t", number).encode(), generation_key("t", number))
        assert follower.read().lineages["t"].newest == 2
        assert follower.read().lineages["t"].newest == 2
    other = ManifestFollower(cluster, replace(STREAM.manifest, stream_id=OTHER_ID))
    with closing(other), pytest.raises(StreamChanged, match="stream 's' was deleted, or deleted and made again"):
        other.read()


@pytest.fixture
def stream(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]) -> Stream:
    """With the teachers t and u."""
    made = small_stream(kafka_settings, fresh_name("s"))
    for name in ("t", "u"):
        add_teacher(kafka_settings, made, teacher_record(stream_id=made.manifest.stream_id, name=name))
    return open_stream(kafka_settings, made.manifest.stream)


@pytest.mark.kafka
def test_one_run_publishes_for_one_teacher_and_each_generation_once(
    kafka_settings: KafkaSettings, stream: Stream
) -> None:
    name = stream.manifest.stream
    assert claim_teacher(kafka_settings, stream, publisher(stream, "t")).newest == 0
    assert claim_teacher(kafka_settings, stream, publisher(stream, "t")).publisher == publisher(stream, "t")
    for changes, said in (
        (
            {"run": "late", "run_id": "b" * 16},
            rf"run 'online' \(run ID {RUN_ID}\) publishes for teacher 't' .* already",
        ),
        ({"every": 5}, "every 4 orders, and not every 5"),
    ):
        with pytest.raises(StreamConflict, match=said):
            claim_teacher(kafka_settings, stream, publisher(stream, "t", **changes))
    first = generation(stream, "t", 1)
    publish_generation(kafka_settings, stream, first)
    publish_generation(kafka_settings, stream, first)
    publish_generation(kafka_settings, stream, replace(first, sha256="ee" * 32, model="/else.onnx"))
    with pytest.raises(
        StreamConflict, match=r"generation 1 .* is there and differs in weights_sha256, step; it is never"
    ):
        publish_generation(kafka_settings, stream, replace(first, weights_sha256="ee" * 32, step=11))
    with pytest.raises(StreamConflict, match=r"generation 3 .* is not taken: run 'online' .* the next one is 2"):
        publish_generation(kafka_settings, stream, generation(stream, "t", 3))
    with pytest.raises(StreamConflict, match=r"generation 1 of teacher 'u' .* nobody publishes for it"):
        publish_generation(kafka_settings, stream, generation(stream, "u", 1))
    with pytest.raises(ConfigError, match="URL of the files that are published has credentials") as refused:
        publish_generation(kafka_settings, stream, generation(stream, "t", 2, model="s3://key:hidden@bucket/2.onnx"))
    assert "hidden" not in str(refused.value)
    found = read_manifest_log(kafka_settings, name).lineages
    assert (found["t"].generations, found["u"].publisher) == ((first,), None)
    with closing(ManifestFollower(KafkaCluster(kafka_settings), stream.manifest)) as follower:
        assert follower.read().lineages["t"].newest == 1
        publish_generation(kafka_settings, stream, generation(stream, "t", 2))
        assert follower.read().lineages["t"].newest == 2
    remove_teacher(kafka_settings, open_stream(kafka_settings, name), "t")
    with pytest.raises(StreamNotFound, match="'t' was removed"):
        claim_teacher(kafka_settings, open_stream(kafka_settings, name), publisher(stream, "t"))


@pytest.mark.kafka
def test_generations_are_copied_once_behind_the_run_that_published_them(
    kafka_settings: KafkaSettings, stream: Stream
) -> None:
    name, elsewhere = stream.manifest.stream, replace(stream.manifest, stream_id=OTHER_ID)
    source = Stream(elsewhere, stream.teachers)
    made = tuple(generation(source, "t", number) for number in (1, 2, 3))
    for newest in (0, 2, 2, 3):
        copy_lineage(kafka_settings, name, Lineage(stream.teachers["t"], publisher(source, "t"), made[:newest]))
        found = open_stream(kafka_settings, name).lineage("t")
        assert found.publisher == publisher(stream, "t")
        assert found.generations == tuple(generation(stream, "t", number) for number in range(1, newest + 1))
    other = replace(made[1], sha256="ee" * 32)
    with pytest.raises(StreamConflict, match=f"generation 2 of teacher 't' of stream '{name}' is another one"):
        copy_lineage(
            kafka_settings, name, Lineage(stream.teachers["t"], publisher(source, "t"), (made[0], other, made[2]))
        )


@pytest.mark.kafka
def test_a_stream_of_before_and_the_codec_head_let_nobody_publish(kafka_settings: KafkaSettings) -> None:
    pinned = {**REGISTRY.fingerprints(), "soft_targets": REGISTRY.fingerprint("soft_targets", 1).hex()}
    before = replace(STREAM, manifest=replace(STREAM.manifest, schema_fingerprints=pinned))
    with pytest.raises(ConfigError, match=r"stream 's' was made before teachers could have generations: .* new stream"):
        claim_teacher(kafka_settings, before, publisher(STREAM, "t"))
    output = replace(STREAM.teachers["t"].outputs[0], codec=CodecSpec("head", 4), head_sha256="c3" * 32)
    by_head = replace(STREAM, teachers={"t": replace(STREAM.teachers["t"], outputs=(output,))})
    with pytest.raises(ConfigError, match="output 'logits' is stored by the codec head"):
        claim_teacher(kafka_settings, by_head, publisher(STREAM, "t"))
