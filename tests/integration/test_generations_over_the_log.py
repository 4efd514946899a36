"""A student that is its teacher's next generations, on real Kafka and processes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.moving import generations_in_log, labelled_by, moving_stream, publishing, student_model
from support.processes import Distillog
from support.small_runs import report, weights

from pipeline.streams import open_stream

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.short, pytest.mark.timeout(300)]


def test_workers_take_up_what_a_run_publishes_and_its_log_gives_the_same_weights_without_any_teacher(
    distillog: Distillog, fresh_name: Callable[[str], str], eventually: Callable[..., object], tmp_path: Path
) -> None:
    name, runs, settings = fresh_name("online"), tmp_path / "runs", distillog.settings
    model = student_model(tmp_path / "first.onnx")
    moving_stream(settings, name, model)
    file = publishing(tmp_path, name)
    first = distillog.start("teach", name, model, "--threads", 1, "--worker", "w0")
    run = distillog.start("runs", "start", file, "--folder", runs)
    distillog.start("feed", name, "--follow", "student", "--lead", "16:32", "--quiet")
    eventually(lambda: generations_in_log(settings, name) >= {1}, 150, "a label by generation 1")
    second = distillog.start("teach", name, model, "--threads", 1, "--worker", "w1")
    second.wait_for("labels by generation [1-4], the newest that is there")
    second.wait_for("agrees with order")  # by the model of that order's generation
    first.kill()
    run.succeed(200)
    second.terminate()
    second.succeed()
    by = labelled_by(settings, name)
    lineage = open_stream(settings, name).lineage("t")
    assert [each.number for each in lineage.generations] == [1, 2, 3, 4]
    assert len(set(by)) >= 4
    assert max(sequence // 40 - generation for sequence, generation in enumerate(by)) <= 3  # ceil((32 + d) / 40)
    found = report(runs)
    assert found["generations"] == {"published": [1, 2, 3, 4], "compared": [], "missing": []}

    def again(run: str, **sections: Any) -> dict[str, Any]:
        distillog.succeed("runs", "start", publishing(tmp_path, name, run, **sections), "--folder", runs, "--quiet")
        assert weights(runs, run) == found["weights_sha256"]
        return report(runs, run)

    assert again("replay")["generations"] == {"published": [], "compared": [1, 2, 3, 4], "missing": []}
    folder = tmp_path / "labels"
    distillog.succeed("capture", name, folder, "--quiet")
    of_files = again("files", source="files", data={"files": str(folder)})
    captured = of_files["generations"]["compared"]
    assert captured == [1, 2, 3, 4][: len(captured)]  # those that labels are of
    assert len(captured) >= max(by)
    assert len(list((tmp_path / "generations").iterdir())) == 5  # the student as it began, too
    assert json.loads((runs / "student" / "metrics.jsonl").read_text().splitlines()[-1])["generation"] == 4


def test_a_run_whose_labels_are_all_too_old_is_fed_on_and_says_why_it_starves(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    """Its worker never has a generation; no step moves the run's cursor, by which the feeder goes."""
    name, runs, settings = fresh_name("behind"), tmp_path / "runs", distillog.settings
    model = student_model(tmp_path / "first.onnx")
    moving_stream(settings, name, model, epochs=1)
    publish, teachers = {"to": "memory://of-the-run-alone"}, [{"name": "t", "max_age": 1}]
    file = publishing(tmp_path, name, every=20, publish=publish, teachers=teachers, starve={"warning": 1.0})
    distillog.start("teach", name, model, "--threads", 1)
    run = distillog.start("runs", "start", file, "--folder", runs)
    distillog.start("feed", name, "--follow", "student", "--lead", "8:16", "--quiet")
    run.succeed(120)
    by = labelled_by(settings, name)
    assert set(by) == {0}
    found = report(runs)
    assert found["too_old_rows"] == open_stream(settings, name).manifest.num_samples - 40 * 16
    assert re.search(r"no soft targets for sequence .* rows were left out so far, .* older than max_age", run.stderr)
