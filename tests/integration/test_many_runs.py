"""Several runs on one stream, each at its own pace: the teacher labels each sample once for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.processes import Distillog
from support.small_runs import run_file, weights

from pipeline.streams import open_stream

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.mark.faults
@pytest.mark.short
def test_each_sample_is_labelled_once_for_any_number_of_runs(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, runs = fresh_name("many"), tmp_path / "runs"
    model = classifier(tmp_path / "m.onnx")
    create = ("topics", "create", name, "--dataset", "digits?split=train", "--partitions", 2, "--order-size", 50)
    distillog.succeed(*create, "--epochs", 2)
    distillog.succeed("topics", "add-teacher", name, "t", model)
    worker = distillog.start("teach", name, model, "--threads", 1)
    followed = ("--follow", "one", "--follow", "two", "--follow", "three", "--pace", "slowest", "--lead", "4:8")
    feeder = distillog.start("feed", name, *followed, "--json")
    files = {
        # Its own pace: smaller steps. And the last one learns the same as the first, long after it.
        "one": run_file(tmp_path, name, "one"),
        "two": run_file(tmp_path, name, "two", train={"batch_size": 5}),
        "three": run_file(tmp_path, name, "three"),
    }
    started = [distillog.start("runs", "start", files[run], "--folder", runs, "--quiet") for run in ("one", "two")]
    distillog.succeed("runs", "start", files["three"], "--folder", runs)
    for run in started:
        run.succeed()
    feeder.succeed()
    worker.terminate()
    worker.succeed()
    found = check_labels(distillog.settings, open_stream(distillog.settings, name))
    assert_nothing_lost(found)
    assert json.loads(feeder.stdout)["published"] == len(found.accepted)
    assert (found.duplicates, found.early) == (0, 0)
    assert weights(runs, "one") == weights(runs, "three") != weights(runs, "two")
