"""Runs whose teachers come late or leave: the same bits live, from the log, from files, and wherever they stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reader_logs import Logs
from support.processes import Distillog
from support.small_runs import run_file
from test_captured_runs import NUM_ORDERS, labels
from test_captured_runs import logs as logs
from train_runs import run as train_run

from schemas.errors import ConfigError, Starved
from student_trainer.run.differences import different_settings
from student_trainer.run.folder import read_settings
from student_trainer.run.settings import RunSettings, load_run
from student_trainer.run.summary import summary
from student_trainer.sources.base import Cursor, LabelledOrder, OrderSource
from student_trainer.sources.files import FilesSource
from student_trainer.sources.stream import StreamSource
from student_trainer.sources.stream_settings import StreamSettings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

LEAVES, COMES = 21, 13
SPANS: list[dict[str, Any]] = [
    {"name": "t", "until": LEAVES, "weight": 2.0},
    {"name": "u", "from": COMES},
    {"name": "w", "from": 5, "until": 9},
]


def reading(logs: Logs, settings: RunSettings) -> Iterator[LabelledOrder]:
    source = StreamSource(logs.settings, StreamSettings.of(settings))
    return source.orders(Cursor.start())


def test_a_late_teacher_is_waited_for_from_its_first_order_on_and_one_that_left_no_more(
    logs: Logs, tmp_path: Path
) -> None:
    file = run_file(tmp_path, logs.stream.manifest.stream, teachers=SPANS, train={"passes": 2})
    found = reading(logs, load_run(file, ["starve.timeout=2.5", "starve.warning=1.0"]))
    logs.write("t", *labels(logs, "t", *range(LEAVES)))
    logs.write("w", *labels(logs, "w", *range(10)))
    teachers = [list(next(found).targets) for _ in range(COMES)]
    before, both = ["t.logits"], ["t.logits", "w.logits"]
    assert teachers == [before] * 5 + [both] * 4 + [before] * 4
    with pytest.raises(Starved, match=r"sequence 13 .* teacher 'u' has 0 workers") as caught:
        next(found)
    assert "teacher 't'" not in str(caught.value)
    logs.write("u", *labels(logs, "u", *range(NUM_ORDERS)))
    found = reading(logs, load_run(file))
    orders = [next(found) for _ in range(NUM_ORDERS + COMES + 1)]
    assert [list(each.targets) for each in orders[COMES:LEAVES]] == [["t.logits", "u.logits"]] * (LEAVES - COMES)
    assert all(list(each.targets) == ["u.logits"] for each in orders[LEAVES:NUM_ORDERS])
    assert [list(each.targets) for each in orders[NUM_ORDERS:][:COMES]] == teachers
    assert orders[LEAVES - 1].place["offsets"]["w"] == [3, 2, 2, 2]  # behind what was learned from of it, and no more
    assert {each.address.partition("@")[0][-1] for each in orders} == set("0123")
    found.close()  # type: ignore[attr-defined]


@pytest.mark.faults
@pytest.mark.short
def test_runs_with_spans_learn_the_same_from_log_and_files_and_after_a_stop(
    logs: Logs, distillog: Distillog, tmp_path: Path
) -> None:
    stream, runs, folder = logs.stream.manifest.stream, tmp_path / "runs", tmp_path / "labels"
    for name, count in (("t", LEAVES), ("u", NUM_ORDERS), ("w", 9)):
        logs.write(name, *labels(logs, name, *range(count)))
    both = [part for name in "tuw" for part in ("--teacher", name)]
    distillog.succeed("capture", stream, folder, *both, "--quiet")
    sources: dict[str, Callable[[StreamSettings], OrderSource]] = {
        "stream": lambda settings: StreamSource(logs.settings, settings),
        "files": lambda settings: FilesSource(folder, settings),
    }

    def trained(name: str, source: str, steps: int = 0, **sections: Any) -> str:
        train = {"passes": 2, "batch_size": 50, "steps": steps}
        file = run_file(tmp_path, stream, name, train=train, **({"teachers": SPANS} | sections))
        settings = load_run(file, [f"source={source}", f"data.files={folder}"])
        return train_run(runs / name, settings, sources[source](StreamSettings.of(settings))).weights_sha256

    live = trained("log", "stream")
    assert trained("files", "files") == live
    # Stopped where two count and in the second pass, and on from the other source.
    for source, steps in (("stream", 11), ("files", 34), ("stream", 0)):
        back = trained("back", source, steps)
    assert back == live
    assert summary(runs / "log")["teachers"] == [f"t until {LEAVES}", f"u from {COMES}", "w from 5 until 9"]
    whole = load_run(run_file(tmp_path, stream, "whole", teachers=[{"name": "t"}, {"name": "u"}]))
    differing = different_settings([read_settings(runs / "log"), whole])
    assert differing["teachers.t.until"] == [LEAVES, None]
    assert differing["teachers.u.from"] == [COMES, None]

    with pytest.raises(ConfigError, match="order 7: no teacher that is learned from counts there"):
        trained("refused", "stream", teachers=[{"name": "t", "until": 7}, {"name": "u", "from": 9}])
    with pytest.raises(ConfigError, match=r"order 21: no teacher that is learned from .* \(t until 21\)"):
        trained("refused", "files", losses=[{"name": "forward_kl", "against": "t.logits"}])


@pytest.mark.faults
@pytest.mark.short
def test_two_processes_learn_what_one_does_of_teachers_with_spans(
    logs: Logs, distillog: Distillog, tmp_path: Path
) -> None:
    for name, count in (("t", LEAVES), ("u", NUM_ORDERS), ("w", 9)):
        logs.write(name, *labels(logs, name, *range(count)))
    runs, stream = tmp_path / "runs", logs.stream.manifest.stream
    more = {"teachers": SPANS, "student": {"dropout": 0.0}, "train": {"batch_size": 50, "micro_batch": 7}}
    files = [run_file(tmp_path, stream, name, **more) for name in ("one", "two")]
    distillog.succeed("runs", "start", files[0], "--folder", runs, "--quiet")
    distillog.torchrun(2, "runs", "start", files[1], "--folder", runs, "--quiet").succeed()
    losses = []
    for name in ("one", "two"):
        lines = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
