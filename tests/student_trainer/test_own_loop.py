"""Labelled batches for a loop of one's own: what a run trains on, from anywhere on, and clean ends."""

from __future__ import annotations

import gc
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from own_loops import hand_written, opened, same, soft_targets, threads
from reader_logs import Logs
from torch.utils.data import DataLoader
from train_runs import run as train_run

from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.reports import read_report
from pipeline.views.fetch import Fetched, Fetcher
from schemas.errors import CheckpointError, ConfigError, Starved, StreamNotFound
from student_trainer.learning.mean_losses import cross_entropy, forward_kl
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.trainee import weights_sha256
from student_trainer.own_loop.iterable import LabelledBatch, LabelledBatches
from student_trainer.run.settings import run_settings
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings

pytestmark = pytest.mark.kafka

CODECS = ("float16", "topk:k=3,temperatures=1|2")


@pytest.fixture(scope="module", params=CODECS)
def logs(request: pytest.FixtureRequest, kafka_settings: KafkaSettings) -> Iterator[Logs]:
    with hand_written(kafka_settings, ("cnn", "resnet"), request.param) as written:
        yield written


@pytest.fixture(scope="module")
def dense(kafka_settings: KafkaSettings) -> Iterator[Logs]:
    with hand_written(kafka_settings) as written:
        yield written


@pytest.fixture
def short(kafka_settings: KafkaSettings) -> Iterator[Logs]:
    """Four orders of twelve are labelled."""
    with hand_written(kafka_settings, orders=4) as written:
        yield written


def standing(logs: Logs, run: str = "own") -> tuple[str, int, int, int]:
    """State, pass, sequence and the checkpoint's sequence that a run reported last."""
    with closing(KafkaCluster(logs.settings).admin()) as admin:
        found = read_report(admin, logs.stream.manifest, run)
    return (found.state, found.pass_number, found.sequence, found.checkpointed) if found else ("", 0, 0, 0)


def test_a_loop_of_ones_own_ends_with_the_weights_of_the_run_of_equal_settings(logs: Logs, tmp_path: Path) -> None:
    settings = run_settings(
        {
            "name": "r",
            "data": {"stream": logs.stream.manifest.stream, "labelled": 40},
            "teachers": [{"name": "resnet"}],
            "student": {"name": "mlp", "hidden": [16]},
            "losses": [{"name": "forward_kl", "temperature": 2.0}, {"name": "cross_entropy", "weight": 0.5}],
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
            "train": {"batch_size": 16, "passes": 2},
        }
    )
    result = train_run(tmp_path / "r", settings, StreamSource(logs.settings, StreamSettings.of(settings)))

    model = build_student(settings.student, Network.of("signal", (1, 40), 10), 0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    steps = 0
    for batch in opened(logs, teachers=["resnet"], passes=2, labelled=40, loaders=2, loader_processes=True):
        logits = model(batch.inputs["signal"])
        soft = forward_kl(logits, batch.targets["resnet"]["logits"], temperature=2.0, weights=batch.weights)
        loss = soft + 0.5 * cross_entropy(logits, batch.labels, labelled_fraction=0.4, weights=batch.weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    assert steps == result.step == 23  # of 400 rows, 30 were left out by the teacher
    assert weights_sha256(model) == result.weights_sha256


def test_a_state_goes_on_bit_for_bit_from_any_batch_on_and_on_any_number_of_processes(logs: Logs) -> None:
    whole = list(opened(logs, passes=2))
    assert len(whole) == 23 < len(opened(logs, passes=2)) == 25
    for count in (0, 1, 4, 12, 22, 23):
        before = opened(logs, passes=2, loaders=2, rank=1, world=2)
        for _, _ in zip(range(count), before, strict=False):
            pass
        state = json.loads(json.dumps(before.state_dict()))
        after = opened(logs, passes=2, prefetch=1)
        after.load_state_dict(state)
        assert after.state_dict() == state
        assert same(after, whole[count:])


def test_each_iteration_begins_at_the_first_row_and_ends_the_one_before(dense: Logs) -> None:
    labels = opened(dense)
    first = iter(labels)
    begun = [next(first), next(first)]
    second = iter(labels)
    assert same([next(second), next(second)], begun)
    with pytest.raises(ConfigError, match="ended by a later one"):
        next(first)
    assert len(list(second)) == 11 - 2
    assert len(list(labels)) == 11


def test_ranks_get_contiguous_parts_of_each_batch_and_fetch_no_more(
    dense: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.views.fetch import Fetcher

    asked: list[int] = []
    fetch = Fetcher.fetch

    def counted(self: Fetcher, ids: Any, *arguments: Any) -> Fetched:
        asked.append(len(ids))
        return fetch(self, ids, *arguments)

    whole = list(opened(dense))
    monkeypatch.setattr(Fetcher, "fetch", counted)
    parts = []
    for rank in range(4):
        labels = opened(dense, rank=rank, world=4)
        asked.clear()  # the samples by which the data are compared with the manifest
        parts.append(list(labels))
        assert sum(asked) == 4 * len(whole)
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [len(share.labels) for share in shares] == [4] * 4
        assert torch.equal(torch.cat([share.sample_ids for share in shares]), batch.sample_ids)
        assert torch.equal(torch.cat([share.inputs["signal"] for share in shares]), batch.inputs["signal"])
        logits = [share.targets["cnn"]["logits"].logits for share in shares]
        assert torch.equal(torch.cat(logits), batch.targets["cnn"]["logits"].logits)


def left_by_break(labels: LabelledBatches) -> None:
    for _ in labels:
        break


def divided(labels: LabelledBatches) -> None:
    for batch in labels:
        len(batch.labels) / 0


def left_by_an_exception(labels: LabelledBatches) -> None:
    with pytest.raises(ZeroDivisionError):
        divided(labels)


def left_to_the_garbage(labels: LabelledBatches) -> None:
    around: list[Any] = [iter(labels)]
    next(around[0])
    around.append(around)
    del around
    gc.collect()


@pytest.mark.parametrize("leave", [left_by_break, left_by_an_exception, left_to_the_garbage])
def test_however_an_iteration_is_left_its_threads_end_and_its_report_says_so(
    dense: Logs, leave: Callable[[LabelledBatches], None], eventually: Any
) -> None:
    before = threads()
    run = leave.__name__.replace("_", "-")
    labels = opened(dense, run=run, loaders=2)
    leave(labels)
    del labels
    eventually(lambda: threads() <= before)
    assert standing(dense, run) == ("stopped", 0, 0, 0)


def test_a_report_says_where_the_loop_stands_and_that_it_is_done(dense: Logs, eventually: Any) -> None:
    labels = opened(dense, run="own")
    walk = iter(labels)
    for _ in range(6):
        next(walk)  # five of them are trained on by now: 80 rows, which end in order 5, since order 3 has but 3 rows
    eventually(lambda: standing(dense) == ("training", 0, 5, 0))
    state = labels.state_dict()
    list(walk)
    assert standing(dense) == ("done", 0, 11, 0)

    again = opened(dense, run="own")
    again.load_state_dict(state)
    for _ in again:
        eventually(lambda: standing(dense) == ("training", 0, 6, 6))
        break


def test_a_starving_loop_warns_and_ends_with_a_runs_words_and_goes_on_when_labels_come(
    short: Logs, caplog: pytest.LogCaptureFixture
) -> None:
    labels = opened(short, run="own", starve_warning=1.0, starve_timeout=2.5)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(Starved, match=r"for sequence 4 since .* gave up, resume the run"),
    ):
        list(labels)
    assert "no soft targets for sequence 4 since" in caplog.text
    assert "start one with `distillog teach" in caplog.text
    assert standing(short) == ("starved", 0, 2, 0)
    short.write("cnn", *(soft_targets(short, "cnn", sequence) for sequence in range(4, 12)))
    labels.load_state_dict(labels.state_dict())
    whole = list(opened(short))
    assert same(labels, whole[3:])


def test_a_data_loader_hands_the_batches_on_but_may_not_read_them_in_workers(dense: Logs) -> None:
    whole = list(opened(dense))
    assert same(DataLoader(opened(dense), batch_size=None), whole)
    with pytest.raises(ConfigError, match="num_workers=0, batch_size=None"):
        list(DataLoader(opened(dense), batch_size=None, num_workers=1, multiprocessing_context="fork"))
    with pytest.raises(ConfigError, match="num_workers=0, batch_size=None"):
        pickle.dumps(opened(dense))


def test_a_state_of_other_batches_is_refused_in_one_line(dense: Logs, logs: Logs) -> None:
    labels = opened(dense)
    state = labels.state_dict()
    for other, words in (
        (opened(dense, batch_size=8), "batch_size was 16, is 8"),
        (opened(dense, size=(20,)), r"size was \[\], is \[20\]"),
        (opened(dense, labelled=10), "labelled was None, is 10"),
        (opened(logs, teachers=["cnn"]), r"source\.stream was"),
    ):
        with pytest.raises(CheckpointError, match=words) as refused:
            other.load_state_dict(state)
        assert "\n" not in str(refused.value)
    remade = json.loads(json.dumps(state))
    remade["source"]["stream_id"] = "0" * 16
    with pytest.raises(CheckpointError, match="the state is of another stream"):
        labels.load_state_dict(remade)
    for broken in ({}, {"cursor": None}, {**state, "cursor": {"row": "x"}}, {**state, "source": 3}, None):
        with pytest.raises(CheckpointError, match=r"no state of labelled batches"):
            labels.load_state_dict(broken)  # type: ignore[arg-type]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"batch_size": 300}, "batch_size 300 is more than the 200 rows"),
    ({"size": (0,)}, "size must be of sides from 1"),
    ({"teachers": []}, "teachers must be one or more names"),
    ({"teachers": ["cnn", "cnn"]}, "each once"),
    ({"labelled": 1000}, "labelled"),
    ({"rank": 0}, "rank and world"),
    ({"rank": 2, "world": 2}, "rank 2 of 2"),
    ({"rank": 0, "world": 3}, "batch_size 16 is of all 3 processes together"),
    ({"device": "abacus"}, "abacus"),
    ({"run": "a.b"}, "run name 'a.b'"),
    ({"starve_timeout": float("nan")}, "timeout must be positive"),
    ({"loader_processes": "yes"}, "loader_processes must be true or false, is 'yes'"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_a_bad_argument_is_refused_in_one_line(dense: Logs, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        opened(dense, **arguments)
    assert "\n" not in str(refused.value)


def test_a_stream_or_a_teacher_that_is_not_there_is_named(dense: Logs) -> None:
    with pytest.raises(StreamNotFound, match="has no teacher 'vit'"):
        opened(dense, teachers=["vit"])


def test_batches_are_typed_as_they_are_documented(dense: Logs) -> None:
    batch = next(iter(opened(dense)))
    assert isinstance(batch, LabelledBatch)
    assert (batch.sample_ids.dtype, batch.labels.dtype, batch.weights.dtype) == (
        torch.int64,
        torch.int64,
        torch.float32,
    )
    assert batch.targets["cnn"]["logits"].logits.dtype == torch.float32
    assert batch.inputs["signal"].shape == (16, 1, 40)
    assert batch.weights.tolist() == [1.0] * 16
