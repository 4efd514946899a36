"""Captured soft targets as Parquet: what others read is what the codecs hold, one row a sample."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from reader_logs import label, make_stream
from support.captures import captured
from support.generations import by, moved
from support.heads import bound, layer
from support.streams import fetcher, manifest

from pipeline.captured import parquet
from pipeline.captured.capturing import CaptureForm
from pipeline.captured.folder import CapturedFolder
from pipeline.captured.parquet import Table, write_tables
from pipeline.captured.tables import TABLES
from pipeline.cli import main
from pipeline.datasets.fingerprint import fingerprint
from pipeline.streams import Stream
from pipeline.views.probe import make_probe
from schemas.avro import REGISTRY
from schemas.codecs import CODECS, CodecSpec
from schemas.errors import CannotWrite, ConfigError, DecodeError, ManifestMismatch
from schemas.head import Head
from schemas.records import Output, SoftTargets, Teacher, TeacherOutput

N, CLASSES = 20, 12
SPECS = {
    "float32": CodecSpec("float32"),
    "float16": CodecSpec("float16"),
    "int8": CodecSpec("int8"),
    "int4": CodecSpec("int4"),
    "topk": CodecSpec("topk", 3, (1.0, 2.0)),
    "topk8": CodecSpec("topk8", 3, (2.0, 4.0)),
    "sampled": CodecSpec("sampled", 30),
    "head": CodecSpec("head", 5),
}
PER_SAMPLE = TeacherOutput("logits", "y", "logits", (CLASSES,), 0, CLASSES)
HEAD = layer(CLASSES, 5)
BY_HEAD = replace(PER_SAMPLE, codec=SPECS["head"], head_sha256=HEAD.sha256)


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def stream_of(*outputs: TeacherOutput, codec: str = "float32", name: str = "cnn", **changes: Any) -> Stream:
    """A stream of 20 orders with one teacher of these outputs."""
    made = make_stream(
        "s",
        (name,),
        stream_id="00" * 8,
        schema_fingerprints=REGISTRY.fingerprints(),
        num_classes=CLASSES,
        codec=SPECS["float32" if codec == "head" else codec],
        **changes,
    )
    teacher = replace(made.teachers[name], outputs=outputs or (BY_HEAD if codec == "head" else PER_SAMPLE,))
    return Stream(made.manifest, {name: teacher})


def logits(sequence: int, num: int, width: int = CLASSES) -> Any:
    return 3 * np.random.default_rng(sequence).standard_normal((num, width)).astype(np.float32)


def labels(stream: Stream, count: int = N, kept: Callable[[int], Any] = lambda sequence: None) -> list[SoftTargets]:
    """Random numbers in every output; `kept` rows of an order, all of them if None."""
    ((name, teacher),) = stream.teachers.items()
    made = []
    plain = Stream(replace(stream.manifest, codec=CodecSpec("float32")), stream.teachers)
    for sequence in range(count):
        whole, rows = label(plain, name, sequence, outputs=()), kept(sequence)
        num = len(whole.sample_ids) if rows is None else len(rows)
        outputs = []
        for output in teacher.outputs:
            values = logits(sequence, num, int(np.prod(output.encoded_shape))).reshape(num, *output.encoded_shape)
            spec, seeds = output.stored_as(stream.manifest.codec), np.arange(num, dtype=np.uint64)
            classes, of_head = bool(output.codec_classes), output.codec_classes if output.head_sha256 else None
            outputs.append(Output.of(output.name, values, spec, classes=classes, seeds=seeds, num_classes=of_head))
        made.append(replace(whole, outputs=tuple(outputs), kept_rows=rows))
    return made


def tables_of(
    tmp_path: Path, stream: Stream, values: list[SoftTargets], **more: Any
) -> tuple[CapturedFolder, list[Table]]:
    path = captured(tmp_path / "c", stream, values, CaptureForm("null"), heads={HEAD.sha256: HEAD.encode()})
    folder = CapturedFolder(path)
    return folder, write_tables(folder, tmp_path / "tables", **more)


def probabilities(values: Any, temperature: float = 1.0) -> Any:
    values = np.exp((values - values.max(axis=-1, keepdims=True)) / temperature)
    return values / values.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_has_columns_of_what_was_encoded(codec: str, tmp_path: Path) -> None:
    assert codec in TABLES
    assert codec in SPECS, f"{codec} needs a line in SPECS"
    stream = stream_of(codec=codec)
    values = labels(stream)
    _, (table,) = tables_of(tmp_path, stream, values)
    assert (table.num_orders, table.num_rows, table.new) == (N, 4 * N, True)
    found = duckdb.sql(f"SELECT * FROM '{table.path}' ORDER BY sequence").fetchall()
    names = duckdb.sql(f"SELECT * FROM '{table.path}'").columns
    assert names[:5] == ["sequence", "epoch", "sample_id", "view_seed", "teacher"]
    rows = [dict(zip(names, row, strict=True)) for row in found]
    assert [row["sample_id"] for row in rows] == [int(each) for value in values for each in value.sample_ids]
    assert {row["teacher"] for row in rows} == {"cnn"}
    assert {(row["sequence"], row["epoch"], row["view_seed"]) for row in rows} == {
        (value.sequence, value.epoch, value.view_seed) for value in values
    }
    width = SPECS["head"].k if codec == "head" else CLASSES
    truth = np.concatenate([logits(sequence, 4, width) for sequence in range(N)])
    HELD[codec](rows, truth)


def dense(atol: float) -> Callable[[list[dict[str, Any]], Any], None]:
    def held(rows: list[dict[str, Any]], truth: Any) -> None:
        there = np.array([row["logits"] for row in rows])
        assert np.allclose(probabilities(there), probabilities(truth), atol=atol)

    return held


def likeliest(temperatures: dict[str, float], atol: float) -> Callable[[list[dict[str, Any]], Any], None]:
    def held(rows: list[dict[str, Any]], truth: Any) -> None:
        classes = np.array([row["logits_classes"] for row in rows])
        assert np.array_equal(classes, np.argsort(-truth, axis=1)[:, :3])
        for at, temperature in temperatures.items():
            exact = np.take_along_axis(probabilities(truth, temperature), classes, axis=1)
            there = np.array([row[f"logits_probabilities{at}"] for row in rows])
            tails = np.array([row[f"logits_tail{at}"] for row in rows])
            assert np.allclose(there, exact, atol=atol)
            assert np.allclose(tails, 1 - exact.sum(axis=1), atol=1e-5)
            assert np.allclose(there.sum(axis=1) + tails, 1, atol=1e-6)

    return held


def rebuilt(rows: list[dict[str, Any]], hidden: Any) -> None:
    exact = hidden.astype(np.float64) @ HEAD.weight.T.astype(np.float64) + HEAD.bias
    assert (np.abs(np.array([row["logits"] for row in rows]) - exact) <= bound(HEAD, hidden)).all()


def drawn(rows: list[dict[str, Any]], truth: Any) -> None:
    for row in rows:
        assert len(set(row["logits_classes"])) == len(row["logits_classes"]) == len(row["logits_probabilities"])
        counts = 30 * np.array(row["logits_probabilities"])
        assert np.allclose(counts, np.round(counts), atol=1e-5)
        assert np.round(counts).sum() == 30
    mean = np.zeros(CLASSES)
    for row in rows:
        mean[row["logits_classes"]] += np.array(row["logits_probabilities"]) / len(rows)
    assert np.allclose(mean, probabilities(truth).mean(axis=0), atol=0.05)


HELD = {
    "float32": dense(1e-6),
    "float16": dense(1e-3),
    "int8": dense(2e-2),
    "int4": dense(3e-1),
    "topk": likeliest({"": 1.0, "@2.0": 2.0}, 1e-3),
    "topk8": likeliest({"@2.0": 2.0, "@4.0": 4.0}, 2e-2),
    "sampled": drawn,
    "head": rebuilt,
}


def test_every_output_has_its_columns_and_classes_are_the_datasets(tmp_path: Path) -> None:
    """Of a specialist, whose class 0 is the dataset's 7 and whose class 2 it does not have."""
    stream = stream_of(
        replace(PER_SAMPLE, num_classes=4, shape=(4,), class_map=(7, 2, -1, 11), codec=CodecSpec("topk", 2)),
        TeacherOutput("hidden", "h", "features", (2, 3), None, 0, CodecSpec("float32")),
        TeacherOutput("tags", "m", "multilabel", (5,), 0, 5, CodecSpec("float16")),
    )
    values = labels(stream)
    _, (table,) = tables_of(tmp_path, stream, values)
    found = pq.read_table(table.path).to_pydict()
    assert set(found["logits_classes"][0]) <= {2, 7, 11}
    topk = values[3].outputs[0].values()
    columns = np.array([2, 7, 11])
    assert found["logits_classes"][12:16] == columns[topk.columns["indices"]].tolist()
    assert np.array_equal(found["hidden"][12:16], values[3].outputs[1].columns["values"].reshape(4, 6))
    assert np.array_equal(found["tags"][12:16], values[3].outputs[2].columns["values"].astype(np.float32))
    about = json.loads(pq.read_metadata(table.path).metadata[b"distillog"])
    assert about["outputs"]["hidden"]["shape"] == [2, 3]
    assert about["outputs"]["logits"]["classes"] == [2, 7, 11]
    assert (about["stream"], about["teacher"], about["orders"]) == ("s", "cnn", N)


def test_a_last_layer_is_read_once_and_one_that_is_not_the_records_makes_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = Head.decode.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Head], raw: bytes, address: str) -> Head:
        decoded.append(address)
        return decode(cls, raw, address)  # type: ignore[no-any-return]

    monkeypatch.setattr(Head, "decode", classmethod(counted))
    stream = stream_of(codec="head")
    folder, (table,) = tables_of(tmp_path, stream, labels(stream))
    assert decoded == [f"the last layer {HEAD.sha256[:12]} of teacher 'cnn'"]
    about = json.loads(pq.read_metadata(table.path).metadata[b"distillog"])
    assert about["outputs"]["logits"]["codec"] == "head:h=5"
    assert about["outputs"]["logits"]["shape"] == [CLASSES]
    other = stream_of(replace(BY_HEAD, codec=CodecSpec("head", 4)))
    with pytest.raises(ManifestMismatch, match=r"gives 12 classes of 5 numbers, its record says 12 of 4"):
        tables_of(tmp_path / "other", other, labels(other))
    (folder.path / "cnn-00000.safetensors").unlink()  # type: ignore[operator]
    with pytest.raises(DecodeError, match=r"cnn-00000\.safetensors: is missing"):
        write_tables(CapturedFolder(folder.path), tmp_path / "again")


def test_rows_without_a_label_have_no_row_and_groups_are_found_by_their_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 12)
    stream = stream_of()
    nothing, two = np.empty(0, np.int64), np.array([1, 3])
    values = labels(stream, kept=lambda sequence: nothing if sequence in (0, 5) else two if sequence == 6 else None)
    _, (table,) = tables_of(tmp_path, stream, values)
    file = pq.ParquetFile(table.path)
    found = file.read().to_pydict()
    assert found["sample_id"] == [int(each) for value in values for each in value.kept_sample_ids]
    assert table.num_rows == 4 * 17 + 2
    statistics = [file.metadata.row_group(group).column(0).statistics for group in range(file.num_row_groups)]
    assert len(statistics) > 4
    assert all(one.max < other.min for one, other in itertools.pairwise(statistics))
    query = f"SELECT sample_id FROM '{table.path}' WHERE sequence = 6 ORDER BY sample_id"
    assert [row[0] for row in duckdb.sql(query).fetchall()] == sorted(values[6].sample_ids[two].tolist())


def test_true_labels_come_from_the_data_if_they_are_the_streams(tmp_path: Path) -> None:
    source = fetcher()
    facts = {"dataset_fingerprint": fingerprint(source.dataset), "view_probe": make_probe(source)}
    made = manifest(source, schema_fingerprints=REGISTRY.fingerprints(), order_size=600, **facts)
    inputs = make_stream("s", ("cnn",)).teachers["cnn"].inputs
    output = TeacherOutput.of_classes("y", "logits", 10)
    stream = Stream(
        made, {"cnn": Teacher(made.stream_id, "cnn", secrets.token_hex(32), "m.onnx", inputs, (output,), 4)}
    )
    values = labels(stream, 2)
    folder, _ = tables_of(tmp_path, stream, values)
    (table,) = write_tables(folder, tmp_path / "tables", dataset="digits?split=train")
    assert table.new  # there was one without labels
    found = pq.read_table(table.path).to_pydict()
    assert found["label"] == source.dataset.labels(np.array(found["sample_id"])).tolist()
    with pytest.raises(ManifestMismatch):
        write_tables(folder, tmp_path / "tables", dataset="digits?split=test")
    with pytest.raises(CannotWrite, match=r"is there with true labels, which it would lose; give --dataset"):
        write_tables(folder, tmp_path / "tables")
    assert pq.read_table(table.path).to_pydict() == found


def test_equal_captures_are_equal_tables_whole_ones_stay_and_longer_ones_take_their_place(tmp_path: Path) -> None:
    stream = stream_of(codec="topk")
    values = labels(stream)
    folder, (first,) = tables_of(tmp_path, stream, values[:9])
    (other,) = write_tables(folder, tmp_path / "again")
    assert other.path.read_bytes() == first.path.read_bytes()
    assert write_tables(folder, tmp_path / "again") == [replace(other, new=False)]
    longer = CapturedFolder(captured(tmp_path / "c", stream, values[9:], CaptureForm()))
    (now,) = write_tables(longer, tmp_path / "again")
    assert (now.num_orders, now.num_rows, now.new) == (N, 4 * N, True)
    with pytest.raises(CannotWrite, match=r"cnn\.parquet: is there, of something else"):
        write_tables(folder, tmp_path / "again")
    now.path.write_text("a thesis")
    with pytest.raises(CannotWrite, match=r"cnn\.parquet: is there, and none that this command wrote"):
        write_tables(longer, tmp_path / "again")
    assert now.path.read_text() == "a thesis"


def test_two_commands_do_not_write_into_one_folder_of_tables(tmp_path: Path) -> None:
    stream = stream_of()
    folder = CapturedFolder(captured(tmp_path / "c", stream, labels(stream), CaptureForm("null")))
    refused = []

    def second(teacher: str, order: int, of: int) -> None:
        if order == 7:
            with pytest.raises(CannotWrite, match="tables are being written there") as caught:
                write_tables(folder, tmp_path / "tables")
            refused.append(caught.value)

    (table,) = write_tables(folder, tmp_path / "tables", progress=second)
    assert refused
    assert pq.read_table(table.path).num_rows == table.num_rows


@pytest.mark.timeout(20)
def test_a_pipe_where_a_table_would_be_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    stream = stream_of()
    folder = CapturedFolder(captured(tmp_path / "c", stream, labels(stream), CaptureForm("null")))
    os.mkfifo(tmp_path / "cnn.parquet")
    with pytest.raises(CannotWrite, match="is no regular file but a folder, a pipe or a device"):
        write_tables(folder, tmp_path)


def test_an_interrupted_table_leaves_nothing_behind(tmp_path: Path) -> None:
    stream = stream_of()
    folder = CapturedFolder(captured(tmp_path / "c", stream, labels(stream), CaptureForm("null")))

    def interrupt(teacher: str, order: int, of: int) -> None:
        if order == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tables(folder, tmp_path / "tables", progress=interrupt)
    assert list((tmp_path / "tables").iterdir()) == []


REFUSED: dict[str, tuple[tuple[TeacherOutput, ...], str]] = {
    "positions": (
        (replace(PER_SAMPLE, shape=(5, CLASSES), class_axis=1, per="position", positions="mask"),),
        "output 'logits' of teacher 'cnn' has a row for each position",
    ),
    "places": (
        (replace(PER_SAMPLE, shape=(5, CLASSES), class_axis=1, codec=CodecSpec("topk", 2)),),
        r"has a list of classes for each of several places, rows of \[5, 12\]",
    ),
    "a name of ours": ((replace(PER_SAMPLE, name="epoch"),), "gives a column 'epoch', as does every table"),
    "two alike": (
        (
            replace(PER_SAMPLE, name="a", codec=CodecSpec("topk", 2)),
            TeacherOutput("a_classes", "h", "features", (3,), None, 0, CodecSpec("float32")),
        ),
        "gives a column 'a_classes', as does output 'a'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_output_that_has_no_place_in_a_table_is_refused_by_name(name: str, tmp_path: Path) -> None:
    outputs, says = REFUSED[name]
    stream = stream_of(*outputs)
    empty = label(stream, "cnn", 0, outputs=())
    folder = CapturedFolder(captured(tmp_path / "c", stream, [empty], CaptureForm("null")))
    with pytest.raises(ConfigError, match=says):
        write_tables(folder, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_a_record_that_is_not_the_teachers_is_put_into_no_table(tmp_path: Path) -> None:
    stream = stream_of()
    values = labels(stream)
    values[4] = replace(values[4], view_seed=1)
    with pytest.raises(ManifestMismatch, match=r"cnn-00000\.avro@\d+: view_seed is 1, .*; it is put into no table"):
        tables_of(tmp_path, stream, values)


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CapturedFolder(captured(tmp_path / "c", stream_of(), labels(stream_of(), 1), CaptureForm("null")))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    with pytest.raises(ConfigError, match=r"Parquet needs a package: `pip install 'distillog\[parquet\]'`"):
        write_tables(folder, tmp_path / "tables")


def test_the_command_writes_tables_without_a_broker(tmp_path: Path) -> None:
    stream = stream_of()
    folder = captured(tmp_path / "c", stream, labels(stream), CaptureForm("null"))
    call = ["capture", "s", str(folder), "--parquet", str(tmp_path / "tables"), "--quiet"]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    path = tmp_path / "tables" / "cnn.parquet"
    assert done.stdout == f"{path}: 80 samples of 20 of 20 orders\n"
    again = CliRunner().invoke(main, [*call, "--json"])
    assert json.loads(again.stdout)["tables"] == {"cnn": {"file": str(path), "orders": 20, "rows": 80, "new": False}}
    assert "give one of them" in CliRunner().invoke(main, [*call, "--check"]).stderr
    for more in (["--follow"], ["--codec", "null"]):
        assert "reads FOLDER alone" in CliRunner().invoke(main, [*call, *more]).stderr
    assert "give --parquet" in CliRunner().invoke(main, ["capture", "s", str(folder), "--dataset", "digits"]).stderr
    other = CliRunner().invoke(main, ["capture", "birds", *call[2:]])
    assert "is captured from stream 's', not from 'birds'" in other.stderr


def test_a_teacher_that_moves_has_a_column_that_says_by_which_model_each_row_is(tmp_path: Path) -> None:
    plain = stream_of()
    stream = moved(plain, "cnn", 2)
    values = [by(value, stream, value.sequence // 9) for value in labels(plain)]
    _, (table,) = tables_of(tmp_path, stream, values)
    found = duckdb.sql(f"SELECT DISTINCT sequence, generation FROM '{table.path}' ORDER BY sequence").fetchall()
    assert found == [(value.sequence, value.generation) for value in values]
    assert {number for _, number in found} == {0, 1, 2}
