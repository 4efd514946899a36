"""A masked language model's words at the masked positions alone, from the ONNX file to the log, over a real Kafka."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.log_checker import assert_nothing_lost, check_labels
from support.processes import Distillog
from support.streams import dead_letters, fetcher, num_orders, order
from support.texts import LENGTH, WORDS, language_model, scores_of

from pipeline.names import dead_letters_topic
from pipeline.streams import open_stream
from schemas.codecs import CodecSpec
from schemas.positions import Positions
from schemas.topk import TopK
from teacher_service.models.labels import label
from teacher_service.models.session import OnnxTeacher

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

DATASET, VIEW = "support.texts:sentences?count=400", "support.texts:masked"
WORDS_OF = ("--input", "tokens=input_ids", "--output", "logits=scores", "--positions", "logits=masked")
STORED = ("--codec", "logits=topk:k=5,temperatures=1|2", "--batch", 7)
K, TEMPERATURES = 5, (1.0, 2.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return language_model(tmp_path / "m.onnx")


def make_stream(distillog: Distillog, name: str, *options: object) -> None:
    create = ("topics", "create", name, "--dataset", DATASET, "--view", VIEW, "--partitions", 4)
    distillog.succeed(*create, "--order-size", 25, "--epochs", 2, *options)


def test_top_k_of_the_masked_positions_lies_in_the_log_as_numpy_says_though_a_worker_is_killed(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path, eventually: Callable[..., Any]
) -> None:
    name = fresh_name("positions")
    make_stream(distillog, name)
    added = distillog.succeed("topics", "add-teacher", name, "t", model, *WORDS_OF, *STORED)
    text = "logits = scores: logits, 300 classes, axis 2 of [N, 12, 300], at positions by masked"
    assert f"{text}, as topk:k=5,temperatures=1|2; batches of 7" in added
    assert "no accuracy: none of the teacher's outputs gives a sample one row of classes" in added
    assert "already there" in distillog.succeed("topics", "add-teacher", name, "t", model, *WORDS_OF, *STORED)
    (teacher,) = json.loads(distillog.succeed("topics", "describe", name, "--json"))["teachers"]
    assert [(one["shape"], one["positions"]) for one in teacher["outputs"]] == [([LENGTH, WORDS], "masked")]

    teach = ("teach", name, model, "--threads", 1, "--until-idle", "--session-timeout", 6)
    first = distillog.start(*teach, "--worker", "first")
    distillog.succeed("feed", name)
    stream = open_stream(distillog.settings, name)
    eventually(lambda: len(check_labels(distillog.settings, stream).accepted) >= 3, 60, "some labels")
    first.kill()
    distillog.start(*teach, "--worker", "second", "--loaders", 3).succeed()

    found = check_labels(distillog.settings, stream)
    assert_nothing_lost(found)
    assert not dead_letters(distillog.settings, dead_letters_topic(name))
    source, here = fetcher(DATASET, VIEW), OnnxTeacher(model, stream.teacher("t"), threads=1)
    num_unmasked = 0
    for one in found.accepted.values():
        record: Any = one.record
        fetched = source.fetch(record.sample_ids, record.view_seed)
        (output,) = record.outputs
        mask = fetched.inputs["masked"] != 0
        assert output.chosen.counts.tolist() == mask.sum(axis=1).tolist()
        num_unmasked += output.chosen.counts.tolist().count(0)
        assert output.datum() == label(here, fetched, CodecSpec("float16")).outputs[0].datum()
        positions = output.values()
        assert isinstance(positions, Positions)
        assert isinstance(positions.rows, TopK)
        check_top_k(positions.rows, scores_of(fetched.inputs["tokens"])[mask])
    assert num_unmasked > 0


def check_top_k(rows: TopK, scores: Any) -> None:
    """Compare stored rows with [P, 300] scores in float64: the likeliest, their probabilities, what is left."""
    log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    there = np.take_along_axis(log_probs, rows.indices, axis=1)
    assert np.allclose(np.exp(there), np.exp(np.sort(log_probs, axis=1)[:, : -K - 1 : -1]), atol=1e-5)
    assert np.allclose(rows.log_probs, there, atol=0.02)
    assert tuple(rows.log_tails) == TEMPERATURES
    for temperature, tail in rows.log_tails.items():
        softened = scores / temperature
        softened = np.exp(softened - softened.max(axis=1, keepdims=True))
        inside = np.take_along_axis(softened, rows.indices, axis=1).sum(axis=1)
        left = softened.sum(axis=1) - inside
        assert np.allclose(np.exp(tail), left / softened.sum(axis=1), rtol=1e-3, atol=1e-7)


def test_what_cannot_choose_positions_is_refused_in_one_line(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path
) -> None:
    name = fresh_name("chosen")
    make_stream(distillog, name)
    add = ("topics", "add-teacher", name, "t", model, "--input", "tokens=input_ids")
    scores = (*add, "--output", "logits=scores", "--positions")
    distillog.refuse(*scores, "logits=maskd", words=("the view gives no field 'maskd'", "did you mean 'masked'"))
    distillog.refuse(*scores, "logits=short", words=("field has shape ?x10", "has shape ?x12x300", "a field is ?x12"))
    distillog.refuse(*scores, "logits=labels", words=("the field holds negative numbers",))
    distillog.refuse(*add, "--output", "topic=topic", "--positions", "topic=masked", words=("no positions in it",))
    for text in ("logit=masked", "logits", "=masked", "logits="):
        distillog.refuse(*scores, text, words=("write NAME=FIELD, of an output that --output names (logits)",), code=2)
    twice = (*scores, "logits=masked", "--positions", "logits=short")
    taken = distillog.call(*scores, "logits=nothing")
    assert taken.exit_code == 0
    assert "warning: field 'nothing' is 0 at every position of the 256 samples that were looked at" in taken.stderr
    distillog.refuse(*twice, words=("output logits is given two",), code=2)


def test_a_sample_that_chooses_more_positions_than_its_view_may_is_a_dead_letter(
    distillog: Distillog, fresh_name: Callable[[str], str], model: Path
) -> None:
    name = fresh_name("bold")
    params = {"share": 0.24, "most": 9}
    make_stream(distillog, name, *(f"--view-param={key}={value}" for key, value in params.items()))
    distillog.succeed("topics", "add-teacher", name, "t", model, *WORDS_OF, *STORED)
    distillog.succeed("feed", name)
    distillog.start("teach", name, model, "--threads", 1, "--until-idle").succeed()
    stream = open_stream(distillog.settings, name)
    found = check_labels(distillog.settings, stream)
    assert_nothing_lost(found)
    source = fetcher(DATASET, VIEW, **params)
    expected = []
    for sequence in range(num_orders(stream)):
        one = order(stream.manifest, sequence)
        faults = source.fetch(one.sample_ids, one.view_seed).faults
        expected += [(sequence, row, reason) for row, reason in faults]
        record: Any = found.accepted[sequence].record
        assert record.num_kept == 25 - len(faults)
    assert expected
    letters = dead_letters(distillog.settings, dead_letters_topic(name))
    assert sorted((one.sequence, one.row, one.reason) for one in letters) == expected
    assert "positions by field 'masked', and its max_positions are 6" in letters[0].reason


def test_records_are_sized_by_positions(distillog: Distillog, fresh_name: Callable[[str], str], model: Path) -> None:
    name = fresh_name("sized")
    make_stream(distillog, name, "--order-size", 200)
    logits = ("--input", "tokens=input_ids", "--output", "logits=scores")
    add = ("topics", "add-teacher", name, "t", model, *logits, "--positions")
    refused = distillog.refuse(
        *add, "logits=tokens", words=("'logits' of 12 positions x 300 as float16, need records",)
    )
    assert "max_positions of 'tokens'" in refused
    distillog.succeed(*add, "logits=masked")  # 6 positions at most, as the view says
