"""Writers use the schema versions that their stream pins, whatever this program's newest are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_streams import DATASET, OPTIONS, fetcher, small_stream
from support.models import classifier
from support.streams import DIGITS, records, stream_with_teacher
from support.streams import fetcher as digits

from pipeline.cli import main
from pipeline.create import add_teacher, create_stream
from pipeline.feed import feed
from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.manifest_log import append, teacher_key
from pipeline.names import manifest_topic, soft_targets_topic, work_orders_topic
from pipeline.streams import delete_stream, open_stream
from schemas.avro import REGISTRY, Registry
from schemas.errors import DecodeError, EncodeError, ManifestMismatch, NeedsNewer
from teacher_service.models.declared import Declared, Scaling
from teacher_service.models.describe import describe_model
from teacher_service.serve import TeachOptions, prepare_worker
from teacher_service.worker import WorkerOptions

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]

NAMES = ("manifest", "soft_targets", "teacher", "work_order")


@pytest.fixture
def tomorrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`tomorrow("work_order")` makes this program a newer one, whose work orders have another version."""

    def become(*names: str) -> None:
        folder = Path(shutil.copytree(REGISTRY.folder, tmp_path / "-".join(names)))
        for name in names:
            newest = max(int(path.stem.partition(".")[2]) for path in folder.glob(f"{name}.*.avsc"))
            schema = json.loads((folder / f"{name}.{newest}.avsc").read_text())
            schema["fields"].append(schema["fields"].pop(0))  # another version, which today's records can be read from
            (folder / f"{name}.{newest + 1}.avsc").write_text(json.dumps(schema))
        monkeypatch.setattr(REGISTRY, "_schemas", Registry(folder)._schemas)

    return become


def versions(settings: KafkaSettings, topic: str) -> set[str]:
    """The fingerprints of all records of a topic."""
    return {record.value[2:10].hex() for found in records(settings, topic).values() for record in found}


def test_a_stream_of_an_older_program_gets_its_records_in_its_own_versions(
    kafka_settings: KafkaSettings, fresh_name: Name, tmp_path: Path, tomorrow: Callable[..., None]
) -> None:
    of_today = REGISTRY.fingerprints()
    name, model = fresh_name("s"), classifier(tmp_path / "m.onnx", (1, 8, 8))
    stream = stream_with_teacher(kafka_settings, name, model)
    tomorrow(*NAMES)
    same = dict(set(REGISTRY.fingerprints().items()) & set(of_today.items()))
    assert same.keys() == {"dead_letter", "generation", "head_chunk", "publisher"}
    feed(KafkaCluster(kafka_settings), open_stream(kafka_settings, name))
    options = TeachOptions(threads=1, worker=WorkerOptions("w", until_idle=True))
    prepare_worker(kafka_settings, name, model, options).run()
    assert versions(kafka_settings, work_orders_topic(name)) == {of_today["work_order"]}
    assert versions(kafka_settings, soft_targets_topic(name, "t")) == {of_today["soft_targets"]}
    assert open_stream(kafka_settings, name).manifest.encode() == stream.manifest.encode()


def test_a_stream_of_the_first_teachers_takes_no_mean_and_goes_on_otherwise(
    kafka_settings: KafkaSettings, fresh_name: Name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(REGISTRY.folder, tmp_path / "yesterday"))
    (folder / "teacher.2.avsc").unlink()
    name, model = fresh_name("s"), classifier(tmp_path / "m.onnx", (1, 8, 8))
    monkeypatch.setattr(REGISTRY, "_schemas", Registry(folder)._schemas)
    source = digits()
    stream, _ = create_stream(kafka_settings, name, source, DIGITS, OPTIONS)
    monkeypatch.undo()
    declared = Declared(general=Scaling(mean=(0.5,)))
    with pytest.raises(EncodeError, match=r"teacher: version 1, which the stream pins, .* too old .* make it anew"):
        add_teacher(kafka_settings, stream, describe_model(model, "t", stream.manifest, source, declared))
    assert soft_targets_topic(name, "t") not in topics(kafka_settings)
    added = describe_model(model, "t", stream.manifest, source)
    assert add_teacher(kafka_settings, stream, added)
    assert versions(kafka_settings, manifest_topic(name)) >= {REGISTRY.fingerprint("teacher", 1).hex()}
    assert not add_teacher(kafka_settings, open_stream(kafka_settings, name), added)
    feed(KafkaCluster(kafka_settings), open_stream(kafka_settings, name))
    options = TeachOptions(threads=1, worker=WorkerOptions("w", until_idle=True))
    prepare_worker(kafka_settings, name, model, options).run()
    assert versions(kafka_settings, soft_targets_topic(name, "t"))


def topics(settings: KafkaSettings) -> list[str]:
    with admin_client(settings) as admin:
        return list(admin.list_topics())


@pytest.mark.parametrize("newer", ["soft_targets", "manifest"])
def test_a_stream_of_a_newer_program_is_refused_at_the_start(
    newer: str,
    kafka_settings: KafkaSettings,
    fresh_name: Name,
    tomorrow: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = fresh_name("s")
    tomorrow(newer)
    small_stream(kafka_settings, name)
    fingerprint = REGISTRY.fingerprints()[newer]
    monkeypatch.undo()
    refusal = rf"^stream '{name}' was made by a newer Distillog: .*\({newer} {fingerprint}\)"
    with pytest.raises(ManifestMismatch, match=refusal):
        open_stream(kafka_settings, name)
    with pytest.raises(ManifestMismatch, match=refusal):
        create_stream(kafka_settings, name, fetcher(), DATASET, OPTIONS)
    listed = CliRunner().invoke(main, ["--bootstrap-servers", kafka_settings.bootstrap_servers, "topics", "list"])
    assert listed.exit_code == 0
    (line,) = [line for line in listed.output.splitlines() if line.startswith(name)]
    assert "(unreadable: stream" in line
    delete_stream(kafka_settings, name)


def test_a_teacher_that_needs_a_newer_program_is_in_nobodys_way_and_can_be_removed(
    kafka_settings: KafkaSettings, fresh_name: Name, tmp_path: Path
) -> None:
    name, model = fresh_name("s"), classifier(tmp_path / "m.onnx", (1, 8, 8))
    stream = stream_with_teacher(kafka_settings, name, model)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--bootstrap-servers", kafka_settings.bootstrap_servers, *arguments])

    ours = stream.teacher("t").encode(stream.manifest.schema_fingerprints)
    two = REGISTRY.decode("teacher", ours, "") | {"name": "two"}
    two["outputs"] = [two["outputs"][0], two["outputs"][0] | {"name": "masked", "per": "position"}]
    append(kafka_settings, name, teacher_key("two"), REGISTRY.encode("teacher", two))
    append(kafka_settings, name, teacher_key("far"), ours[:2] + b"\x07" * 8 + ours[10:])
    opened = open_stream(kafka_settings, name)
    assert (list(opened.teachers), list(opened.unread)) == (["t"], ["two", "far"])
    assert feed(KafkaCluster(kafka_settings), opened).why == "all orders are fed"
    options = TeachOptions(threads=1, worker=WorkerOptions("w", until_idle=True))
    prepare_worker(kafka_settings, name, model, options).run()

    refusals = {
        "two": "teacher 'two' was added by a newer Distillog: its output 'masked' is of all positions",
        "far": "unknown schema 0707",
    }
    for teacher, said in refusals.items():
        with pytest.raises(NeedsNewer, match=rf"^{manifest_topic(name)}/0@\d+: {said}"):
            opened.teacher(teacher)
        refused = call("topics", "add-teacher", name, teacher, str(model))
        assert refused.exit_code == 1
        assert said in refused.stderr
        for command in ("describe", "lag"):
            assert (
                f"\nteacher {teacher}: needs a newer Distillog ({manifest_topic(name)}/0@"
                in call("topics", command, name).stdout
            )
    (line,) = [line for line in call("topics", "list").stdout.splitlines() if line.startswith(f"{name} ")]
    assert line.endswith(" t, two (needs a newer Distillog), far (needs a newer Distillog)")
    for teacher in refusals:
        removed = call("topics", "remove-teacher", name, teacher, "--yes")
        assert removed.exit_code == 0, removed.output
    opened = open_stream(kafka_settings, name)
    assert (list(opened.teachers), opened.removed, opened.unread) == (["t"], {"two", "far"}, {})


@pytest.mark.parametrize("key", [b"manifest", b"teacher/cnn"])
def test_a_junk_record_makes_its_stream_unreadable_and_no_other(
    key: bytes, kafka_settings: KafkaSettings, fresh_name: Name
) -> None:
    junk, sound = fresh_name("junk"), fresh_name("sound")
    small_stream(kafka_settings, sound)
    small_stream(kafka_settings, junk)
    if key == b"manifest":  # only the first record of that key counts
        delete_stream(kafka_settings, junk)
        with admin_client(kafka_settings) as admin:
            admin.create_topics({manifest_topic(junk): {"num_partitions": 1}}, wait_for_metadata=True)
    append(kafka_settings, junk, key, b"no Avro at all")
    arguments = ["--bootstrap-servers", kafka_settings.bootstrap_servers, "topics", "list", "--json"]
    listed = CliRunner().invoke(main, arguments)
    assert listed.exit_code == 0
    rows = {row["stream"]: row for row in json.loads(listed.stdout)}
    assert rows[sound]["orders"] == 20
    assert rows[junk]["orders"] is None
    assert f"(unreadable: {manifest_topic(junk)}/0@" in rows[junk]["dataset"]
    with pytest.raises(DecodeError, match="no Avro record"):
        open_stream(kafka_settings, junk)
    delete_stream(kafka_settings, junk)
