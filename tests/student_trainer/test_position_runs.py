"""Runs that learn from positions: of hard labels in a dataset's field, and of teachers' soft targets in a real log."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_loops import opened
from reader_logs import Logs, label
from support.hidden_tokens import LENGTH, VOCABULARY, Reader, masked
from support.processes import Distillog
from support.small_runs import checkpoints, weights
from torch.nn import functional
from train_runs import run as train_run

from pipeline.create import StreamOptions, add_teacher, create_stream
from pipeline.datasets import open_dataset
from pipeline.datasets.base import Field
from pipeline.kafka.clients import new_admin, new_producer
from pipeline.kafka.settings import KafkaSettings
from pipeline.streams import delete_stream, open_stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from pipeline.views.positions import what_is_chosen
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, ManifestMismatch
from schemas.records import Output, SoftTargets, Teacher, TeacherInput, TeacherOutput
from student_trainer.learning import mean_losses
from student_trainer.learning.fitting import fit, label_limits
from student_trainer.learning.positions import PositionTarget
from student_trainer.learning.terms import resolve
from student_trainer.run.settings import RunSettings, run_settings
from student_trainer.sources.base import Cursor
from student_trainer.sources.dataset import DatasetSource
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings

URI = "support.hidden_tokens:masked?count=60"
LABELS = {"name": "cross_entropy", "labels": "wanted"}


def text_run(**sections: Any) -> RunSettings:
    """20 steps of 10 texts, from their hard labels alone."""
    document: dict[str, Any] = {
        "name": "r",
        "source": "dataset",
        "data": {"dataset": URI, "order_size": 16},
        "student": {"name": "support.hidden_tokens:reader", "inputs": ["tokens"], "classes": VOCABULARY},
        "losses": [LABELS],
        "optimizer": {"name": "adamw", "lr": 0.05},
        "train": {"batch_size": 10, "steps": 20, "log_every": 1},
        "checkpoint": {"every": 1, "keep": 99},
    }
    for name, values in sections.items():
        document[name] = values if isinstance(values, list) else document.get(name, {}) | values
    return run_settings(document)


def losses(path: Path) -> list[float]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def cut_back(path: Path, step: int) -> None:
    """Leave no checkpoint behind a step, as if the run had been killed after it."""
    for place in (path / "checkpoints").iterdir():
        if int(place.name.removeprefix("step-")) > step:
            shutil.rmtree(place)


def test_a_run_learns_hidden_tokens_from_labels_in_a_field_and_goes_on_from_anywhere_in_the_same_bits(
    tmp_path: Path,
) -> None:
    whole = train_run(tmp_path / "whole", text_run())
    costs = losses(tmp_path / "whole")
    assert np.mean(costs[-5:]) < 0.7 * np.mean(costs[:5])
    for step in (1, 13):
        shutil.copytree(tmp_path / "whole", tmp_path / f"at {step}")
        cut_back(tmp_path / f"at {step}", step)
        assert train_run(tmp_path / f"at {step}", text_run()).weights_sha256 == whole.weights_sha256
    other = train_run(tmp_path / "loaders", text_run(train={"loaders": 3}))
    assert other.weights_sha256 == whole.weights_sha256


def test_the_first_loss_is_the_mean_over_the_labelled_positions_of_the_batch(tmp_path: Path) -> None:
    settings = text_run(train={"steps": 1})
    source = DatasetSource(settings)
    ids = source.sequence.sample_ids(0)[:10]
    train_run(tmp_path / "r", settings)
    torch.manual_seed(0)
    model = Reader(VOCABULARY, 16)
    model.drop.p = 0.0
    texts = masked()
    tokens, wanted = (torch.tensor(np.stack([texts[int(one)][name] for one in ids])) for name in ("tokens", "wanted"))
    expected = functional.cross_entropy(model(tokens)["logits"].flatten(0, 1), wanted.flatten().long(), ignore_index=-1)
    # Dropout of a tenth is all that is between them.
    assert abs(losses(tmp_path / "r")[0] - expected.item()) < 0.1


FIELDS = {
    "wanted": Field((LENGTH,), "int32"),
    "floats": Field((LENGTH,), "float32"),
    "one": Field((), "int64"),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such field": ({"labels": "wnted"}, r"labels: the view has no field 'wnted': did you mean 'wanted'"),
    "floats": ({"labels": "floats"}, r"labels: field 'floats' is float32; labels are integers, -1 where there is none"),
    "a soft loss": ({"name": "forward_kl"}, "which cross_entropy alone learns from"),
    "a teacher's output": ({"against": "logits"}, "learns from labels: leave out `against`"),
    "a projection": ({"projection": "linear"}, "learns from labels: leave out `projection`"),
    "an unknown key": ({"labelled_fraction": 0.5}, "key 'labelled_fraction' is unknown"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_labels_of_positions_that_cannot_be_are_refused_before_the_start(name: str) -> None:
    entry, says = REFUSED[name]
    with pytest.raises(ConfigError, match=rf"^\[\[losses\]\] .*{says}") as caught:
        resolve(text_run(losses=[LABELS | entry]), {}, False, lambda: FIELDS)
    assert "\n" not in str(caught.value)


GIVEN = {"logits": (LENGTH, VOCABULARY), "whole": (VOCABULARY,), "hidden": (LENGTH, 5), "one": ()}


def test_the_student_has_to_give_classes_at_the_places_of_the_labels() -> None:
    def terms(**entry: Any) -> Any:
        return resolve(text_run(losses=[LABELS | entry]), {}, False, lambda: FIELDS)

    assert fit(terms(), GIVEN, VOCABULARY, 0) == {}
    assert label_limits(terms(), GIVEN) == {"wanted": VOCABULARY}
    assert label_limits((*terms(), *terms(on="hidden", key="h")), GIVEN) == {"wanted": 5}
    assert fit(terms(labels="one", on="whole"), GIVEN, VOCABULARY, 0) == {}
    for on in ("whole", "one"):
        with pytest.raises(
            ConfigError, match=r"rows of \[N.*\], against the labels of field 'wanted' of \[N, 6, classe"
        ):
            fit(terms(on=on), GIVEN, VOCABULARY, 0)
    with pytest.raises(ConfigError, match=r"rows of \[N\], against the labels of field 'one' of \[N, classes\]"):
        fit(terms(labels="one", on="one"), GIVEN, VOCABULARY, 0)


def test_a_label_that_is_no_class_ends_a_run_with_its_sample(tmp_path: Path) -> None:
    settings = text_run(data={"dataset": f"{URI}&label=9"})
    with pytest.raises(ConfigError, match="field 'wanted' of sample 5 holds the label 9; the student has 9 classes"):
        train_run(tmp_path / "r", settings)


def test_how_many_classes_a_student_has_is_said_where_nothing_tells_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not say how many classes it has, nor does .*: say it by \[student\]"):
        train_run(tmp_path / "r", text_run(student={"classes": 0}))
    with pytest.raises(ConfigError, match="classes must not be negative, is -1"):
        text_run(student={"classes": -1})
    digits = text_run(data={"dataset": "digits"}, losses=[{"name": "cross_entropy"}], student={"classes": 4})
    digits = replace(digits, student=replace(digits.student, name="linear", inputs=()))
    with pytest.raises(ConfigError, match=r"rows of \[N, 4\], against the labels' classes of \[N, 10\]"):
        train_run(tmp_path / "d", digits)


def test_without_labels_of_positions_a_dataset_still_needs_labels_of_samples() -> None:
    with pytest.raises(ConfigError, match="has no labels, or does not say how many classes"):
        DatasetSource(text_run(losses=[LABELS, {"name": "cross_entropy", "key": "whole", "on": "whole"}]))


# --- a teacher's positions --------------------------------------------------------------------------------------------

TOPK = "topk:k=3,temperatures=1|2"
OUTPUTS = (
    TeacherOutput("logits", "y", "logits", (LENGTH, VOCABULARY), 1, VOCABULARY, None, "position", "masked"),
    TeacherOutput("hidden", "h", "features", (LENGTH, 4), None, 0, CodecSpec("float16"), "position", "masked"),
)
NUM_ORDERS = 8  # 2 epochs of 60 texts, in orders of 16


@pytest.fixture
def make_logs(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]) -> Iterator[Callable[..., Logs]]:
    admin, producer = new_admin(kafka_settings), new_producer(kafka_settings)
    made: list[str] = []

    def make(
        *teachers: str,
        codec: str = TOPK,
        classes: int = VOCABULARY,
        uri: str = URI,
        outputs: tuple[TeacherOutput, ...] = OUTPUTS,
    ) -> Logs:
        name = fresh_name("texts")
        made.append(name)
        fetcher = Fetcher(open_dataset(uri), view_spec("none", {}))
        spec = CodecSpec.parse(codec)
        options = StreamOptions(order_size=16, epochs=2, partitions=2, codec=spec, num_classes=classes)
        stream, _ = create_stream(kafka_settings, name, fetcher, uri, options)
        for teacher in teachers:
            inputs = (TeacherInput("x", "tokens", "int64", "", 1.0, ()),)
            digest = secrets.token_hex(32)
            record = Teacher(stream.manifest.stream_id, teacher, digest, "m.onnx", inputs, outputs, 16)
            add_teacher(kafka_settings, stream, record)
        return Logs(kafka_settings, open_stream(kafka_settings, name), admin, producer)

    yield make
    producer.close(timeout=5)
    admin.close()
    for name in made:
        delete_stream(kafka_settings, name)


def addresses(logs: Logs) -> str:
    """Where the labels of order 0 lie."""
    return ", ".join(rf"\S+soft-targets\.{teacher}/0@0" for teacher in logs.stream.teachers)


def soft_targets(logs: Logs, teacher: str, sequence: int, kept: list[int] | None = None) -> SoftTargets:
    """What a teacher says of the hidden tokens of an order: it is nearly sure of them, but for some noise."""
    targets, texts = label(logs.stream, teacher, sequence), masked()
    rows = np.arange(len(targets.sample_ids)) if kept is None else np.array(kept)
    samples = [texts[int(one)] for one in targets.sample_ids[rows]]
    chosen = what_is_chosen(np.stack([each["masked"] for each in samples]) != 0)
    wanted = np.concatenate([each["wanted"][each["masked"] > 0] for each in samples])
    chance = np.random.default_rng([sequence, len(teacher)])
    logits = (4 * np.eye(VOCABULARY)[wanted] + chance.normal(0, 0.3, (len(wanted), VOCABULARY))).astype(np.float32)
    hidden = np.cos(np.outer(wanted, np.arange(1, 5))).astype(np.float32)
    outputs = (
        Output.of("logits", logits, logs.stream.manifest.codec, chosen=chosen),
        Output.of("hidden", hidden, CodecSpec("float16"), classes=False, chosen=chosen),
    )
    return replace(targets, kept_rows=None if kept is None else rows, outputs=outputs)


def stream_run(logs: Logs, *entries: dict[str, Any], **sections: Any) -> RunSettings:
    given = {
        "source": "stream",
        "data": {"stream": logs.stream.manifest.stream},
        "teachers": [{"name": name} for name in logs.stream.teachers],
        "losses": list(entries) or SOFT,
        "student": {"name": "support.hidden_tokens:reader", "inputs": ["tokens"]},
        "starve": {"warning": 1.0, "timeout": 5.0},
    }
    document = text_run().as_dict() | given
    document["train"] |= {"steps": 0}
    for name, values in sections.items():
        document[name] = document[name] | values
    return run_settings(document)


SOFT = [
    {"name": "forward_kl", "temperature": 2.0},
    {"name": "cosine", "on": "hidden", "against": "hidden", "projection": "linear", "weight": 0.5},
    {**LABELS, "weight": 0.1},
]


def source_of(logs: Logs, settings: RunSettings) -> StreamSource:
    return StreamSource(logs.settings, StreamSettings.of(settings))


@pytest.mark.kafka
def test_a_student_learns_from_two_teachers_positions_and_goes_on_in_the_same_bits(
    make_logs: Callable[..., Logs], tmp_path: Path
) -> None:
    logs = make_logs("cnn", "vits", classes=0)
    for teacher, left_out in (("cnn", 1), ("vits", 4)):
        kept = [row for row in range(16) if row != left_out]
        logs.write(teacher, *(soft_targets(logs, teacher, s, kept if s == 2 else None) for s in range(NUM_ORDERS)))
    settings = stream_run(logs)
    source = source_of(logs, settings)
    assert source.num_classes == VOCABULARY
    assert source.targets["cnn.logits"].whole == (LENGTH, VOCABULARY)
    whole = train_run(tmp_path / "whole", settings, source)
    assert whole.step == 11  # 2 of the 120 rows were left out
    costs = losses(tmp_path / "whole")
    assert np.mean(costs[-3:]) < 0.8 * np.mean(costs[:3])
    for step in (2, 9):
        shutil.copytree(tmp_path / "whole", tmp_path / f"at {step}")
        cut_back(tmp_path / f"at {step}", step)
        again = train_run(tmp_path / f"at {step}", settings, source_of(logs, settings))
        assert again.weights_sha256 == whole.weights_sha256
    other = stream_run(logs, train={"loaders": 3, "prefetch": 1})
    assert train_run(tmp_path / "o", other, source_of(logs, other)).weights_sha256 == whole.weights_sha256


@pytest.mark.kafka
def test_a_texts_own_label_stands_beside_its_positions(make_logs: Callable[..., Logs], tmp_path: Path) -> None:
    logs = make_logs("cnn", classes=0, uri=f"{URI}&topics=1")
    logs.write("cnn", *(soft_targets(logs, "cnn", sequence) for sequence in range(NUM_ORDERS)))
    settings = stream_run(logs, SOFT[0], {"name": "cross_entropy", "on": "topic"})
    source = source_of(logs, settings)
    assert (source.num_classes, source.label_classes) == (VOCABULARY, 4)
    assert train_run(tmp_path / "r", settings, source).finished
    narrow = stream_run(logs, {"name": "cross_entropy", "on": "whole"}, student={"classes": 3})
    with pytest.raises(ConfigError, match=r"rows of \[N, 3\], against the labels' classes of \[N, 4\]"):
        train_run(tmp_path / "narrow", narrow, source_of(logs, narrow))


@pytest.mark.kafka
def test_a_teacher_of_some_words_teaches_a_student_of_all_though_labels_have_fewer_classes(
    make_logs: Callable[..., Logs], tmp_path: Path
) -> None:
    words = (-1, *range(VOCABULARY - 1, 0, -1))
    some = replace(OUTPUTS[0], class_map=words)
    logs = make_logs("cnn", codec="float32", classes=0, uri=f"{URI}&topics=1", outputs=(some,))
    for sequence in range(NUM_ORDERS):
        record = soft_targets(logs, "cnn", sequence)
        whole = record.outputs[0]
        stored = Output.of("logits", whole.columns["values"][:, 1:], CodecSpec("float32"), chosen=whole.chosen)
        logs.write("cnn", replace(record, outputs=(stored,)))
    settings = stream_run(logs, {"name": "forward_kl"}, {"name": "cross_entropy", "on": "topic"})
    source = source_of(logs, settings)
    assert (source.num_classes, source.label_classes) == (VOCABULARY, 4)
    assert source.targets["cnn.logits"].whole == (LENGTH, VOCABULARY - 1)
    assert train_run(tmp_path / "r", settings, source).finished
    costs = losses(tmp_path / "r")
    assert np.mean(costs[-3:]) < np.mean(costs[:3])


@pytest.mark.kafka
@pytest.mark.timeout(240)
def test_a_run_that_is_killed_in_the_middle_of_its_positions_ends_in_the_same_bits(
    make_logs: Callable[..., Logs], distillog: Distillog, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    logs, runs = make_logs("cnn"), tmp_path / "runs"
    files = {name: tmp_path / f"{name}.toml" for name in ("killed", "whole")}
    for name, file in files.items():
        settings = replace(stream_run(logs, starve={"timeout": 90.0}), name=name)
        file.write_text(replace(settings, checkpoint=replace(settings.checkpoint, every=2)).as_toml())
    logs.write("cnn", *(soft_targets(logs, "cnn", sequence) for sequence in range(5)))
    killed = distillog.start("runs", "start", files["killed"], "--folder", runs, "--quiet")
    eventually(lambda: checkpoints(runs, "killed"), 90, "a checkpoint")
    killed.kill()
    logs.write("cnn", *(soft_targets(logs, "cnn", sequence) for sequence in range(NUM_ORDERS)))
    distillog.succeed("runs", "resume", "killed", "--folder", runs)
    distillog.succeed("runs", "start", files["whole"], "--folder", runs)
    assert weights(runs, "killed") == weights(runs, "whole")


@pytest.mark.kafka
def test_a_loop_of_ones_own_gets_the_positions_of_each_batch(make_logs: Callable[..., Logs]) -> None:
    logs = make_logs("cnn", codec="float32")
    records = [soft_targets(logs, "cnn", sequence) for sequence in range(NUM_ORDERS)]
    logs.write("cnn", *records)
    logits = np.concatenate([each.outputs[0].columns["values"] for each in records])
    model, at = Reader(VOCABULARY, 5), 0
    for batch in opened(logs):
        target = batch.targets["cnn"]["logits"]
        assert isinstance(target, PositionTarget)
        assert torch.equal(target.at, batch.inputs["masked"].flatten().nonzero()[:, 0])
        assert np.array_equal(target.logits.numpy(), logits[at : at + len(target.at)])
        at += len(target.at)
        given = model(batch.inputs["tokens"])
        soft = mean_losses.forward_kl(given["logits"], target, 2.0)
        (soft + mean_losses.cross_entropy(given["logits"], batch.inputs["wanted"])).backward()
    parts = [opened(logs, rank=rank, world=2) for rank in (0, 1)]
    for batch, *halves in zip(opened(logs), *parts, strict=True):
        whole, *each = (one.targets["cnn"]["logits"] for one in (batch, *halves))
        assert torch.equal(torch.cat([one.logits for one in each]), whole.logits)
        values = [mean_losses.forward_kl(torch.zeros(one.shape), one) for one in (whole, *each)]
        torch.testing.assert_close((values[1] + values[2]) / 2, values[0])


UNLIKE: dict[str, tuple[Callable[[SoftTargets], SoftTargets], str]] = {
    "rows of samples": (
        lambda good: replace(good, outputs=(of_samples(good), good.outputs[1])),
        r"logits of 9 classes as float32, rows of \[9\], hidden of .*; the record of teacher 'cnn' says "
        r"logits of 9 classes as float32, rows of \[9\], of positions",
    ),
    "other positions": (
        lambda good: replace(good, outputs=(moved(good.outputs[0]), moved(good.outputs[1]))),
        r"sample \d+: cnn\.logits has \d positions, and field 'masked' chooses \d: the view here chooses other",
    ),
    "as many positions, but others": (
        lambda good: replace(good, outputs=(good.outputs[0], elsewhere(good.outputs[1]))),
        r"sample \d+: cnn\.hidden has \d positions, and field 'masked' chooses others: the view here chooses other",
    ),
}


def of_samples(good: SoftTargets) -> Output:
    return Output.of("logits", np.zeros((16, VOCABULARY), np.float32), CodecSpec())


def moved(output: Output) -> Output:
    """One position less of the first sample that has any, one more of the last."""
    assert output.chosen is not None
    counts = output.chosen.counts.copy()
    counts[np.flatnonzero(counts)[0]] -= 1
    counts[-1] += 1
    return replace(output, chosen=replace(output.chosen, counts=counts))


def elsewhere(output: Output) -> Output:
    """As many positions of a sample, but others."""
    assert output.chosen is not None
    marks = output.chosen.marks.copy()
    marks[3] ^= 1
    return replace(output, chosen=replace(output.chosen, marks=marks))


@pytest.mark.kafka
def test_of_several_teachers_the_one_is_named_whose_positions_differ(
    make_logs: Callable[..., Logs], tmp_path: Path
) -> None:
    logs = make_logs("cnn", "vits", codec="float32")
    good = soft_targets(logs, "vits", 0)
    logs.write("cnn", soft_targets(logs, "cnn", 0))
    logs.write("vits", replace(good, outputs=tuple(map(moved, good.outputs))))
    with pytest.raises(ManifestMismatch, match=rf"^{addresses(logs)}: sample \d+: vits\.logits has \d positions"):
        train_run(tmp_path / "r", settings := stream_run(logs), source_of(logs, settings))


@pytest.mark.kafka
@pytest.mark.parametrize("name", UNLIKE)
def test_records_of_other_positions_than_declared_or_viewed_are_refused_with_their_address(
    name: str, make_logs: Callable[..., Logs], tmp_path: Path
) -> None:
    logs = make_logs("cnn", codec="float32")
    change, says = UNLIKE[name]
    logs.write("cnn", change(soft_targets(logs, "cnn", 0)))
    with pytest.raises(ManifestMismatch, match=rf"soft-targets\.cnn/0@0: .*{says}"):
        train_run(tmp_path / "r", settings := stream_run(logs), source_of(logs, settings))


@pytest.mark.kafka
def test_positions_where_rows_of_samples_are_declared_are_refused(make_logs: Callable[..., Logs]) -> None:
    logs = make_logs("cnn", codec="float32")
    good = soft_targets(logs, "cnn", 0)
    teacher = logs.stream.teacher("cnn")
    per_sample = replace(teacher.outputs[0], shape=(VOCABULARY,), class_axis=0, per="sample", positions="")
    logs.write("cnn", good)
    source = source_of(logs, stream_run(logs, SOFT[0]))
    source._by_name["cnn"] = replace(teacher, outputs=(per_sample, teacher.outputs[1]))
    with pytest.raises(ManifestMismatch, match=r"rows of \[9\], of positions, .* says .*rows of \[9\], hidden of"):
        next(source.orders(Cursor.start()))
    source.close()
