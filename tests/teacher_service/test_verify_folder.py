"""`distillog verify` over captured files, without any Kafka: true labels pass, and whatever is damaged is named."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner
from support.captures import captured
from support.generations import generation, publisher
from support.models import classifier
from support.streams import fetcher, manifest
from support.written_labels import Labelling

from pipeline.captured.capturing import CaptureForm
from pipeline.captured.index import ENTRY
from pipeline.cli import main
from pipeline.datasets.fingerprint import fingerprint
from pipeline.streams import Stream
from pipeline.views.probe import make_probe
from schemas.errors import ConfigError, LabelsDiffer, ManifestMismatch
from schemas.records import Lineage
from teacher_service.models.declared import Declared
from teacher_service.models.describe import describe_model
from teacher_service.models.files import model_sha256
from teacher_service.models.session import OnnxTeacher
from teacher_service.proof.subject import of_folder
from teacher_service.proof.verify import Verdict, Verification, VerifyOptions

ORDERS = 40
NO_KAFKA = """
import sys
from pipeline.cli import main
try:
    main(sys.argv[1:])
finally:
    assert "onnxruntime" in sys.modules
    assert not [name for name in sys.modules if name.partition(".")[0] == "kafka"]
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "m.onnx")


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """Labels of all orders but the last one, in a few files."""
    return labelled(tmp_path / "labels", model)


def labelled(folder: Path, model: Path, forged: dict[int, int] | None = None) -> Path:
    source = fetcher()
    made = manifest(source, dataset_fingerprint=fingerprint(source.dataset), view_probe=make_probe(source))
    teacher = describe_model(model, "t", made, source, Declared(batch=16))
    stream = Stream(made, {"t": teacher})
    labelling = Labelling(stream, source, OnnxTeacher(model, teacher, "cpu", 1))
    values = [labelling.record(each, labelled_as=(forged or {}).get(each)) for each in range(ORDERS)]
    return captured(folder, stream, values, CaptureForm("null", 20_000))


def verify(folder: Path, model: Path, **options: int) -> tuple[Verdict, str]:
    verification = Verification(of_folder(folder, model, None), model, VerifyOptions(threads=1, **options))
    verdict = verification.run()
    try:
        verification.judge()
    except LabelsDiffer as error:
        return verdict, str(error)
    return verdict, ""


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


def block(folder: Path, sequence: int) -> tuple[Path, int, int]:
    """Where an order lies: file, offset, bytes."""
    entry = (folder / "t.index").read_bytes()[ENTRY.itemsize * sequence :][: ENTRY.itemsize]
    number, size, offset, _ = struct.unpack("<IIQI", entry)
    return folder / f"t-{number:05d}.avro", offset, size


def test_true_labels_pass_and_what_is_not_captured_is_said(folder: Path, model: Path) -> None:
    verdict, error = verify(folder, model)
    assert (error, verdict.num_verified, verdict.num_same, verdict.first_missing) == ("", ORDERS, ORDERS, ORDERS)
    assert verdict.num_missing == 1


def flipped_block(folder: Path) -> None:
    for sequence in (31, 17):
        path, offset, size = block(folder, sequence)
        flip(path, offset + size // 2)


def swapped_in_the_index(folder: Path) -> None:
    raw, size = bytearray((folder / "t.index").read_bytes()), ENTRY.itemsize
    # 17 and 29 are of one partition, so that no more than their own words tell them apart.
    one, other = slice(17 * size, 18 * size), slice(29 * size, 30 * size)
    raw[one], raw[other] = raw[other], raw[one]
    (folder / "t.index").write_bytes(raw)


def flipped_index(folder: Path) -> None:
    flip(folder / "t.index", 17 * ENTRY.itemsize + 9)


def flipped_header(folder: Path) -> None:
    flip(folder / "t-00002.avro", 40)


def forged_with_its_checksum(folder: Path) -> None:
    """Where the record lay in the log, which no label depends on."""
    path, offset, size = block(folder, 17)
    flip(path, offset + 4)
    data = path.read_bytes()[offset : offset + size]
    raw = bytearray((folder / "t.index").read_bytes())
    raw[17 * ENTRY.itemsize + 16 : 18 * ENTRY.itemsize] = struct.pack("<I", zlib.crc32(data))
    (folder / "t.index").write_bytes(raw)


DAMAGES: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "bits of two orders": (flipped_block, 2, "order 17 .*is not what its checksum says"),
    "two orders changed places": (swapped_in_the_index, 2, "order 17 .*sequence is 29, the manifest says 17"),
    "a bit of the index": (flipped_index, 1, "order 17 .*damaged"),
    "a bit of a later file's header": (flipped_header, 3, "order 6 .*its header is not what the list says"),
    "a change with its checksum": (forged_with_its_checksum, 1, "its SHA-256 is not the listed one"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_found_and_the_first_order_of_it_named(folder: Path, model: Path, damage: str) -> None:
    harm, number, words = DAMAGES[damage]
    harm(folder)
    verdict, error = verify(folder, model)
    assert (verdict.num_differ, verdict.num_verified) == (number, ORDERS)
    assert re.search(words, error), error


def test_permuted_orders_are_named_by_the_command_without_kafka(model: Path, tmp_path: Path) -> None:
    folder = labelled(tmp_path / "permuted", model, {9: 23, 23: 9})
    environment = {key: value for key, value in os.environ.items() if "KAFKA" not in key and "DISTILLOG" not in key}
    done = subprocess.run(
        [sys.executable, "-c", NO_KAFKA, "verify", str(folder), str(model), "--threads", "1", "--json", "--quiet"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 4, done.stderr
    found = json.loads(done.stdout)
    assert (found["differ"], found["verified"], found["missing"]) == (2, ORDERS, 1)
    assert [each["sequence"] for each in found["differences"]] == [9, 23]
    assert (found["stream"], found["folder"], found["teacher"]) == ("s", str(folder), "t")
    assert "the first is order 9" in done.stderr
    assert "Traceback" not in done.stderr


def test_captured_files_are_verified_behind_a_url(folder: Path, model: Path) -> None:
    files, url = fsspec.filesystem("memory"), "memory://bucket/verified"
    for each in folder.iterdir():
        files.pipe(f"{url}/{each.name}", each.read_bytes())
    done = CliRunner().invoke(main, ["verify", url, str(model), "--threads", "1", "--quiet"])
    files.store.clear()
    assert done.exit_code == 0, done.output
    assert f"{url}, teacher t on CPUExecutionProvider: {ORDERS} of 41 orders" in done.output
    secret = CliRunner().invoke(main, ["verify", "s3://KEY:SECRET@bucket/labels", str(model)])
    assert secret.exit_code == 1
    assert "has credentials or a query in it" in secret.output
    assert "SECRET" not in secret.output


def test_another_model_and_a_folder_without_labels_are_refused(folder: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch, match=r"is no teacher of .*labels \(there: t \("):
        of_folder(folder, classifier(tmp_path / "other.onnx", seed=1), None)
    with pytest.raises(ConfigError, match="holds no captured soft targets"):
        of_folder(tmp_path, model, None)


def test_labels_of_each_generation_are_held_against_its_own_model(model: Path, tmp_path: Path) -> None:
    """Two numbers may have one file; whose model is asked is told by its bytes."""
    source, other = fetcher(), classifier(tmp_path / "next.onnx", seed=1)
    made = manifest(source, dataset_fingerprint=fingerprint(source.dataset), view_probe=make_probe(source))
    teacher = describe_model(model, "t", made, source, Declared(batch=16))
    stream = Stream(made, {"t": teacher})
    sums = model_sha256(other), model_sha256(other), model_sha256(model)
    generations = tuple(generation(stream, "t", at, sha256=sha256) for at, sha256 in enumerate(sums, 1))
    lineage = Lineage(teacher, publisher(stream, "t"), generations)
    stream = replace(stream, lineages={"t": lineage})
    by_number = [
        Labelling(stream, source, OnnxTeacher(path, lineage.at(number) or teacher, "cpu", 1))
        for number, path in enumerate((model, other, other, model))
    ]
    values = [by_number[each // 10].record(each, labelled_as=21 if each == 24 else None) for each in range(ORDERS)]
    folder = captured(tmp_path / "labels", stream, values, CaptureForm("null", 20_000))
    first, error = verify(folder, model)
    assert (error, first.num_verified, first.num_same, first.num_others, first.num_missing) == ("", 20, 20, 20, 1)
    second, error = verify(folder, other)
    assert (second.num_verified, second.num_others, second.num_same, second.num_missing) == (20, 20, 19, 1)
    assert ([each.sequence for each in second.differences], "1 of 20 orders of teacher 't'" in error) == ([24], True)
    assert second.as_dict()["other_generations"] == 20
    with pytest.raises(ManifestMismatch, match="is no teacher of"):
        verify(folder, classifier(tmp_path / "strange.onnx", seed=2))
    with pytest.raises(
        ConfigError, match="no labels of teacher 't' by this model, and 10 of other generations in these 10"
    ):
        verify(folder, model, begin=10, until=20)
    said = CliRunner().invoke(main, ["verify", f"{folder}/", str(model), "--threads", "1"])
    assert said.exit_code == 0, said.output
    assert "orders of other generations, not looked at: 20; give their models, too" in said.stdout
    assert "20 of 41 orders are labelled by this model, 20 rows of them" in said.stdout
