"""Outputs per position: how they are declared, what is labelled of them, call by call, here and apart."""

from __future__ import annotations

import queue
import tracemalloc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import fetcher, manifest, order
from support.texts import LENGTH, MOST, WIDTH, WORDS, language_model, scores_of, weights

from pipeline.record_size import record_bytes, refuse_large_records, teacher_record_bytes
from pipeline.sequence import Sequence
from pipeline.topic_settings import DEFAULT_MAX_MESSAGE
from pipeline.views import find_view
from schemas.codecs import CodecSpec, encode_values
from schemas.errors import ConfigError, DistillogError, ModelFailed, RecordTooLarge, TeacherRejected
from schemas.positions import Positions
from schemas.records import DeadLetter, Output, SoftTargets, Teacher
from teacher_service.apart.child import encode_task
from teacher_service.apart.suspects import Suspects
from teacher_service.leases.chain import Chain, Job, Mark, Parcel
from teacher_service.models import checks
from teacher_service.models import describe as describe_module
from teacher_service.models.assess import assess
from teacher_service.models.checks import check_model
from teacher_service.models.declared import Declared, DeclaredOutput
from teacher_service.models.describe import describe_model
from teacher_service.models.labels import Labels, label
from teacher_service.models.session import OnnxTeacher, Outputs
from teacher_service.parcels import Parcels
from teacher_service.stages import patient_labels

SOURCE = fetcher("support.texts:sentences", "support.texts:masked")
MANIFEST = manifest(SOURCE, order_size=20, codec=CodecSpec("topk", 4, (1.0, 2.0)))
TOPK, FLOAT16, FLOAT32 = MANIFEST.codec, CodecSpec("float16"), CodecSpec("float32")
SCORES = DeclaredOutput("scores", "logits", positions="masked")
HIDDEN = DeclaredOutput("hidden", "hidden", "features", positions="masked")
TOPIC = DeclaredOutput("topic", "topic", codec=FLOAT16)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("model") / "m.onnx")


def describe(path: Path, *outputs: DeclaredOutput, **declared: Any) -> Teacher:
    inputs = {"tokens": "input_ids"}
    return describe_model(path, "t", MANIFEST, SOURCE, Declared(outputs, inputs=inputs, **declared))


def opened(path: Path, *outputs: DeclaredOutput, **declared: Any) -> OnnxTeacher:
    return OnnxTeacher(path, describe(path, *outputs, **declared), threads=1)


def test_an_output_per_position_is_described_by_its_shape_and_the_field_that_chooses(path: Path) -> None:
    by_word = DeclaredOutput("by_word", "words", "logits", 1, positions="masked")
    scores, words, hidden, topic = describe(path, SCORES, by_word, HIDDEN, TOPIC).outputs
    assert (scores.per, scores.positions, scores.shape, scores.class_axis) == ("position", "masked", (12, 300), 1)
    assert (words.shape, words.class_axis, words.places, words.stored_shape) == ((300, 12), 0, (12,), (300,))
    assert (hidden.per, hidden.codec, hidden.stored_shape) == ("position", FLOAT16, (16,))
    assert topic.per == "sample"
    assert str(scores) == "logits = scores: logits, 300 classes, axis 2 of [N, 12, 300], at positions by masked"


def test_what_was_declared_reads_as_options_that_declare_it(path: Path) -> None:
    declared = Declared((replace(SCORES, codec=TOPK), TOPIC), inputs={"tokens": "input_ids"})
    teacher = describe_model(path, "t", MANIFEST, SOURCE, declared)
    words = declared.options(teacher)
    assert words[words.index("--positions") :][:2] == ["--positions", "logits=masked"]
    assert words.count("--positions") == 1


REFUSED: dict[str, tuple[DeclaredOutput, type[DistillogError], str]] = {
    "no such field": (
        replace(SCORES, positions="maskd"),
        ConfigError,
        "--positions logits=maskd: the view gives no field 'maskd': did you mean 'masked'",
    ),
    "another length": (
        replace(SCORES, positions="short"),
        ConfigError,
        r"field has shape \?x10, output 'scores' has shape \?x12x300: to choose its positions a field is \?x12$",
    ),
    "negative numbers": (
        replace(SCORES, positions="labels"),
        ConfigError,
        "the field holds negative numbers or NaN: it chooses the positions where it is not 0",
    ),
    "no axis of positions": (
        replace(TOPIC, positions="masked"),
        ConfigError,
        r"--positions topic=masked: output 'topic' has shape \?x3: a sample has no positions in it",
    ),
    "no positions left": (
        replace(HIDDEN, reduction="mean@1"),
        ConfigError,
        r"--positions hidden=masked: output 'hidden' has shape \?x12x16, and is reduced by mean@1: a sample has no "
        "positions left$",
    ),
    "logits that are probabilities": (
        DeclaredOutput("likely", "logits", positions="masked"),
        TeacherRejected,
        "its rows are positive and sum to 1: they are probabilities",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_cannot_choose_is_refused_by_name(path: Path, name: str) -> None:
    output, kind, says = REFUSED[name]
    with pytest.raises(kind, match=says):
        describe(path, output)


def test_a_field_that_chooses_nothing_at_first_is_no_fault_of_the_teacher(path: Path) -> None:
    teacher = opened(path, replace(SCORES, positions="nothing"), replace(HIDDEN, positions="nothing"))
    fetched = SOURCE.fetch(np.arange(20), 0)
    check_model(teacher, fetched.inputs)
    found = assess(teacher, TOPK, SOURCE, 0)
    assert (found.declared.num_unfit, found.has_holes, found.has_classes) == (0, False, False)
    assert found.declared.num_chosen == {"logits": 0, "hidden": 0}
    labels = label(teacher, fetched, TOPK)
    assert [(one.chosen.counts.tolist(), one.row_shape) for one in labels.outputs if one.chosen is not None] == [
        ([0] * 20, (WORDS,)),
        ([0] * 20, (WIDTH,)),
    ]


def test_chosen_positions_are_labelled_as_numpy_says_in_the_order_of_samples(path: Path) -> None:
    by_word = DeclaredOutput("by_word", "words", "logits", 1, FLOAT32, "masked")
    teacher = opened(path, replace(SCORES, codec=FLOAT32), by_word, replace(HIDDEN, codec=FLOAT32), batch=7)
    fetched = SOURCE.fetch(np.arange(20), 5)
    mask = fetched.inputs["masked"] != 0
    assert 0 in mask.sum(axis=1)
    labels = label(teacher, fetched, TOPK)
    expected = scores_of(fetched.inputs["tokens"])[mask]
    scores, words, hidden = labels.outputs
    for one in labels.outputs:
        assert one.chosen is not None
        assert one.chosen.counts.tolist() == mask.sum(axis=1).tolist()
        assert isinstance(one.values(), Positions)
    assert np.allclose(scores.columns["values"], expected, atol=1e-4)
    assert np.array_equal(scores.columns["values"], words.columns["values"])
    embedded = weights()["words"][fetched.inputs["tokens"]]
    assert np.allclose(hidden.columns["values"], (embedded - embedded.mean(axis=1, keepdims=True))[mask], atol=1e-5)


def test_a_class_map_at_positions_is_of_words_however_many_classes_labels_have(path: Path, tmp_path: Path) -> None:
    word_of = np.random.default_rng(1).permutation(WORDS)
    (tmp_path / "all.txt").write_text("\n".join(map(str, word_of)) + "\n")
    (tmp_path / "some.txt").write_text("\n".join("-" if word % 2 else str(word) for word in word_of) + "\n")
    dense = replace(SCORES, codec=FLOAT32)
    some = replace(dense, name="some", class_map=tmp_path / "some.txt")
    teacher = opened(path, replace(dense, class_map=tmp_path / "all.txt"), some)
    fetched = SOURCE.fetch(np.arange(20), 5)
    expected = scores_of(fetched.inputs["tokens"])[fetched.inputs["masked"] != 0][:, np.argsort(word_of)]
    all_words, some_words = (one.columns["values"] for one in label(teacher, fetched, TOPK).outputs)
    assert np.allclose(all_words, expected, atol=1e-4)
    assert np.allclose(some_words, expected[:, ::2], atol=1e-4)

    (tmp_path / "topics.txt").write_text("0\n1\n3\n")
    with pytest.raises(ConfigError, match=r"line 3: '3' is no class of dataset .*: it has classes 0 to 2"):
        describe(path, replace(TOPIC, class_map=tmp_path / "topics.txt"))


def test_probabilities_at_positions_become_logarithms(path: Path) -> None:
    teacher = opened(path, DeclaredOutput("likely", "p", "probabilities", positions="masked"))
    fetched = SOURCE.fetch(np.arange(20), 5)
    scores = scores_of(fetched.inputs["tokens"])[fetched.inputs["masked"] != 0]
    expected = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    assert np.allclose(teacher.label(fetched.inputs)["p"], np.maximum(expected, np.log(1e-12)), atol=1e-3)


@settings(max_examples=25)
@given(rows=st.integers(1, 9), batch=st.integers(1, 9), seed=st.integers(0, 99), codec=st.sampled_from((TOPK, FLOAT16)))
def test_what_is_encoded_call_by_call_has_the_bytes_of_what_is_encoded_at_once(
    path: Path, rows: int, batch: int, seed: int, codec: CodecSpec
) -> None:
    given_codec = replace(SCORES, codec=codec)
    teacher = opened(path, given_codec, HIDDEN, TOPIC, DeclaredOutput("hidden", "whole", "features"), batch=batch)
    fetched = SOURCE.fetch(np.arange(rows), seed)
    at_once, labels = teacher.label(fetched.inputs), label(teacher, fetched, FLOAT16)
    for one, output in zip(labels.outputs, teacher.teacher.outputs, strict=True):
        columns = encode_values(at_once[one.name], output.stored_as(FLOAT16), output.num_classes)
        assert {name: column.tobytes() for name, column in columns.items()} == {
            name: column.tobytes() for name, column in one.columns.items()
        }


class Watched:
    """A session that counts how many of its answers are still known when it is called again."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._there: list[weakref.ref[Any]] = []
        self.left: list[int] = []

    def run(self, names: list[str], feeds: Any) -> Any:
        self.left.append(sum(one() is not None for one in self._there))
        answers = self._session.run(names, feeds)
        self._there += map(weakref.ref, answers)
        return answers


def test_an_answer_of_the_model_is_gone_before_the_next_call(path: Path) -> None:
    teacher = opened(path, SCORES, TOPIC, DeclaredOutput("hidden", "whole", "features"), batch=3)
    watched = Watched(teacher._session)
    teacher._session = watched  # type: ignore[assignment]
    label(teacher, SOURCE.fetch(np.arange(20), 5), FLOAT16)
    assert watched.left == [0] * 7


def test_an_order_is_labelled_in_the_memory_of_one_call(path: Path) -> None:
    teacher = opened(path, SCORES, batch=4)
    fetched = SOURCE.fetch(np.arange(60), 5)
    label(teacher, fetched, TOPK)
    of_all, of_call = 60 * LENGTH * WORDS * 4, 4 * LENGTH * WORDS * 4
    tracemalloc.start()
    label(teacher, fetched, TOPK)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # ONNX Runtime's own are not traced; topk works in chunks of 2^15 numbers.
    assert peak < of_all
    assert peak < 3 * of_call + (1 << 21)


def test_only_the_checked_rows_outputs_are_there_in_the_checks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "OUTPUT_BYTES", 5 * 4 * LENGTH * WORDS)
    teacher = opened(path, SCORES, batch=4)
    seen: list[int] = []
    raw = teacher.raw
    teacher.raw = lambda inputs: seen.append(len(inputs["tokens"])) or raw(inputs)  # type: ignore[method-assign,func-returns-value]
    check_model(teacher, SOURCE.fetch(np.arange(20), 5).inputs)
    assert seen == [5]


def test_a_teacher_is_described_by_no_more_outputs_than_it_is_checked_with(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_bytes = 4 * LENGTH * WORDS
    for module in (checks, describe_module):
        monkeypatch.setattr(module, "OUTPUT_BYTES", 5 * row_bytes)
    asked: list[int] = []
    answers = OnnxTeacher.answers
    monkeypatch.setattr(
        OnnxTeacher, "answers", lambda self, inputs: asked.append(len(inputs["tokens"])) or answers(self, inputs)
    )
    assert describe(path, SCORES).inference_batch == 5
    assert asked == [16, 5]
    assert describe(path, SCORES, batch=8).inference_batch == 8
    assert asked[2:] == [16, 8]


def made_order() -> tuple[Any, Any, Job]:
    one = order(MANIFEST, 1)
    return one, SOURCE.fetch(one.sample_ids, one.view_seed), Chain(1, 1, Mark(0, 1), 4).accept(0, one)


def test_a_row_is_left_out_where_any_of_its_positions_cannot_be_stored(tmp_path: Path) -> None:
    made, fetched, job = made_order()
    large = int(np.setdiff1d(fetched.inputs["tokens"], [0, WORDS - 1])[7])
    teacher = opened(language_model(tmp_path / "m.onnx", large), TOPIC, replace(HIDDEN, positions="tokens"), batch=6)
    tokens = fetched.inputs["tokens"]
    hidden = (tokens == large).any(axis=1)
    assert 0 < hidden.sum() < 20
    labels = label(teacher, fetched, FLOAT16)
    beyond = "the teacher's output 'hidden' is beyond what float16 holds"
    assert labels.faults == tuple((row, beyond) for row in np.flatnonzero(hidden).tolist())
    parcel = Parcels(teacher.teacher, FLOAT16, "s.work-orders").of_labels(job, made, labels)
    assert parcel.value is not None
    record = SoftTargets.decode(parcel.value, "here")
    assert record.kept_sample_ids.tolist() == made.sample_ids[~hidden].tolist()
    counts = record.output("hidden").chosen.counts
    assert counts is not None
    assert counts.tolist() == (tokens[~hidden] != 0).sum(axis=1).tolist()
    assert [DeadLetter.decode(letter, "").row for letter in parcel.letters] == np.flatnonzero(hidden).tolist()


def test_a_row_whose_field_turns_negative_is_a_fault_that_names_the_field(path: Path) -> None:
    teacher = opened(path, SCORES, TOPIC, batch=6)
    _, fetched, _ = made_order()
    whole = label(teacher, fetched, TOPK)
    fetched.inputs["masked"] = fetched.inputs["masked"].astype(np.float32)
    fetched.inputs["masked"][8, 0], fetched.inputs["masked"][19, 3] = -1.0, np.nan
    labels = label(teacher, fetched, TOPK)
    why = "the view's field 'masked' holds a negative number or NaN: it chooses positions"
    assert labels.faults == ((8, why), (19, why))
    kept = whole.outputs[0].values().take(np.delete(np.arange(20), [8, 19]))
    found = labels.outputs[0].values()
    assert found.chosen is not None
    assert np.array_equal(found.chosen.counts, kept.chosen.counts)
    assert all(np.array_equal(found.columns[name], kept.columns[name]) for name in kept.columns)


def test_a_field_that_is_of_another_shape_now_is_no_fault_of_a_sample(path: Path) -> None:
    teacher = opened(path, SCORES)
    _, fetched, _ = made_order()
    fetched.inputs["masked"] = fetched.inputs["masked"][:, :10]
    with pytest.raises(ModelFailed, match="field 'masked' has shape 10, and chooses of the 12 positions of output"):
        patient_labels(teacher, fetched, TOPK, 1)


class FailsOnce(OnnxTeacher):
    """Fails once, behind its second call."""

    failed = False

    def in_calls(self, inputs: Any, work: Any) -> Any:
        calls = 0

        def failing(rows: slice, values: Outputs) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3 and not self.failed:
                self.failed = True
                raise RuntimeError("out of device memory")
            return work(rows, values)

        return super().in_calls(inputs, failing)


def test_a_second_try_begins_anew_and_publishes_nothing_of_the_first(path: Path) -> None:
    record = describe(path, SCORES, TOPIC, batch=5)
    made, fetched, job = made_order()
    flaky, plain = FailsOnce(path, record, threads=1), OnnxTeacher(path, record, threads=1)
    parcels = Parcels(record, TOPK, "s.work-orders")
    again = parcels.of_labels(job, made, patient_labels(flaky, fetched, TOPK, 1))
    assert flaky.failed
    assert again.value == parcels.of_labels(job, made, label(plain, fetched, TOPK)).value


def test_an_order_of_which_no_sample_can_be_viewed_has_outputs_of_no_row(path: Path) -> None:
    teacher = opened(path, SCORES, TOPIC)
    fetched = SOURCE.fetch(np.array([10**9]), 0)
    labels = label(teacher, fetched, TOPK)
    assert len(labels.kept) == 0
    assert len(labels.faults) == 1
    assert [(one.chosen is None, one.row_shape) for one in labels.outputs] == [(False, (WORDS,)), (True, (3,))]


@pytest.fixture
def apart(path: Path) -> Iterator[tuple[Suspects, OnnxTeacher, Parcels, queue.Queue[Parcel]]]:
    teacher = opened(path, SCORES, replace(HIDDEN, codec=FLOAT32), TOPIC, batch=6)
    parcels = Parcels(teacher.teacher, TOPK, "s.work-orders")
    done: queue.Queue[Parcel] = queue.Queue()
    sequence = Sequence.of(MANIFEST)
    suspects = Suspects(
        lambda model: encode_task(SOURCE, model, TOPK, 1.0, sequence.sample_ids(0), sequence.view_seed(0)),
        lambda: teacher,
        MANIFEST.num_samples,
        parcels,
        done.put,
    )
    suspects.start()
    yield suspects, teacher, parcels, done
    suspects.stop()


def test_a_child_labels_positions_to_the_same_bytes(
    apart: tuple[Suspects, OnnxTeacher, Parcels, queue.Queue[Parcel]],
) -> None:
    suspects, teacher, parcels, done = apart
    made, fetched, job = made_order()
    suspects.add(job)
    there = done.get(timeout=60)
    assert there.value == parcels.of_labels(job, made, label(teacher, fetched, TOPK)).value


def test_labels_of_pieces_are_those_of_the_whole(path: Path) -> None:
    teacher = opened(path, SCORES, TOPIC, batch=5)
    made, whole, _ = made_order()
    pieces = []
    for start in range(0, 20, 5):  # whole calls
        rows = np.arange(start, start + 5)
        of_piece = label(teacher, SOURCE.fetch(made.sample_ids[rows], made.view_seed), TOPK)
        pieces.append(replace(of_piece, kept=rows[of_piece.kept]))
    joined, expected = Labels.joined(pieces), label(teacher, whole, TOPK)
    assert joined.kept.tolist() == expected.kept.tolist()
    for one, other in zip(joined.outputs, expected.outputs, strict=True):
        assert one.datum() == other.datum()


def test_neighbours_that_change_what_is_at_a_position_are_found(path: Path) -> None:
    teacher = opened(path, SCORES, TOPIC)
    inputs = SOURCE.fetch(np.arange(20), 5).inputs

    def mixed(given: Any) -> Any:
        labels, counts = dict(teacher.label(given)), teacher.num_positions(given)
        of_row = np.repeat(np.roll(given["tokens"].sum(axis=1), 1), counts["logits"])
        labels["logits"] = labels["logits"] + of_row[:, None].astype(np.float32)
        return labels, counts

    assert not checks.check_independence(lambda given: (teacher.label(given), teacher.num_positions(given)), inputs)
    assert "neighbours in the batch (output 'logits'" in checks.check_independence(mixed, inputs)


def test_the_teachers_other_output_is_held_against_labels_and_positions_alone_have_no_accuracy(path: Path) -> None:
    both = assess(opened(path, SCORES, TOPIC), TOPK, SOURCE, 0)
    assert both.has_classes
    assert both.declared.accuracy is not None
    alone = assess(opened(path, SCORES), TOPK, SOURCE, 0)
    assert (alone.has_classes, alone.declared.accuracy, alone.declared.num_unfit) == (False, None, 0)
    ids = np.arange(SOURCE.dataset.num_samples)
    assert alone.declared.num_chosen == {"logits": np.count_nonzero(SOURCE.fetch(ids, 0).inputs["masked"])}


def test_records_are_sized_by_the_most_positions_that_the_view_chooses(path: Path) -> None:
    teacher = describe(path, SCORES, replace(HIDDEN, codec=FLOAT32))
    most = find_view(MANIFEST.view.name).max_positions
    assert most == {"masked": MOST}
    made, fetched, job = made_order()
    of_sample = MOST * (4 * (2 + 2) + 2 * 4) + MOST * WIDTH * 4 + 2 * 8
    whole = LENGTH * (4 * (2 + 2) + 2 * 4) + LENGTH * WIDTH * 4 + 2 * 8
    tight = replace(MANIFEST, order_size=1_800, max_record_bytes=1)
    limit = 1 << 20
    assert 1_800 * of_sample < limit < 1_800 * whole
    refuse_large_records(tight, teacher, most)
    with pytest.raises(RecordTooLarge, match=r"'hidden' of 12 positions x 16 as float32, .*max_positions of 'masked'"):
        refuse_large_records(tight, teacher, {})
    assert teacher_record_bytes(tight, teacher) == DEFAULT_MAX_MESSAGE
    model = OnnxTeacher(path, teacher, threads=1)
    value = Parcels(teacher, TOPK, "s.work-orders").of_labels(job, made, label(model, fetched, TOPK)).value
    assert value is not None
    assert len(value) <= record_bytes(20, []) + 20 * of_sample


def test_an_output_of_samples_is_labelled_as_it_ever_was(path: Path) -> None:
    teacher = opened(path, TOPIC, DeclaredOutput("hidden", "hidden", "features"), batch=7)
    fetched = SOURCE.fetch(np.arange(20), 5)
    values, labels = teacher.label(fetched.inputs), label(teacher, fetched, TOPK)
    for one, output in zip(labels.outputs, teacher.teacher.outputs, strict=True):
        classes = output.class_axis is not None
        expected = Output.of(one.name, values[one.name], output.stored_as(TOPK), classes=classes)
        assert one.datum() == expected.datum()
