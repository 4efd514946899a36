"""Runs that publish and are killed, runs that teach each other, and those that may not publish."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import classifier
from support.moving import label_all, labelled_by, moving_stream, publishing, student_model
from support.processes import Distillog
from support.small_runs import report, weights
from support.streams import fetcher, stream_with_teacher

from pipeline.create import add_teacher
from pipeline.generations import claim_teacher
from pipeline.streams import open_stream
from schemas.records import Publisher
from teacher_service.models.declared import Declared
from teacher_service.models.describe import describe_model

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.mark.short
def test_a_run_that_is_killed_while_it_publishes_goes_on_to_the_weights_of_its_replay(
    distillog: Distillog, fresh_name: Callable[[str], str], eventually: Callable[..., object], tmp_path: Path
) -> None:
    """Once when the file is there, once when the record is: neither is made twice, nor another one."""
    name, runs, settings = fresh_name("killed"), tmp_path / "runs", distillog.settings
    model = student_model(tmp_path / "first.onnx")
    moving_stream(settings, name, model)
    label_all(distillog, name, model)
    files = tmp_path / "generations"
    run = distillog.start("runs", "start", publishing(tmp_path, name), "--folder", runs, "--quiet")
    eventually(lambda: list(files.glob("t-000001-*.onnx")), 90, "the first generation's file")
    run.kill()
    run = distillog.start("runs", "resume", "student", "--folder", runs, "--quiet")
    eventually(lambda: open_stream(settings, name).lineage("t").newest >= 2, 90, "the second generation's record")
    run.kill()
    distillog.start("runs", "resume", "student", "--folder", runs, "--quiet").succeed(240)
    found, lineage = report(runs), open_stream(settings, name).lineage("t")
    assert [each.sequence for each in lineage.generations] == [40, 80, 120, 160]
    run_id = json.loads((runs / "student" / "run.json").read_text())["run_id"]
    assert {each.run_id for each in lineage.generations} == {run_id}
    assert {*found["generations"]["published"], *found["generations"]["compared"]} <= {2, 3, 4}  # of its last part
    assert 4 in found["generations"]["published"]
    assert {Path(each.model) for each in lineage.generations} <= set(files.iterdir())
    assert sorted(path.name[:8] for path in files.iterdir()) == [f"t-{number:06d}" for number in range(5)]
    said = distillog.call("runs", "start", publishing(tmp_path, name, "replay"), "--folder", runs)
    assert said.exit_code == 0, said.output
    assert "run 'student'" in said.output
    assert "this one compares its weights, and publishes nothing" in said.output
    assert weights(runs, "replay") == found["weights_sha256"]
    assert report(runs, "replay")["generations"]["compared"] == [1, 2, 3, 4]
    # Another seed is no replay; neither is written, nor gone on with.
    other = publishing(tmp_path, name, "other", train={"seed": 1})
    distillog.refuse("runs", "start", other, "--folder", runs, "--quiet", words=("generation 1", "leave [publish] out"))
    assert len(list(files.iterdir())) == 5


@pytest.mark.short
def test_a_student_that_cannot_be_its_teachers_generation_is_refused_before_anything_is_made(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, runs, settings = fresh_name("refused"), tmp_path / "runs", distillog.settings
    stream = stream_with_teacher(settings, name, classifier(tmp_path / "c.onnx"))
    start = ("runs", "start", publishing(tmp_path, name), "--folder", runs, "--quiet")
    distillog.refuse(
        *start, words=("[publish] the student cannot be a generation of teacher 't'", "the student gives no 'y'")
    )
    distillog.refuse(*start, "--set", "publish.teacher=nobody", words=("has no teacher 'nobody'",))
    assert open_stream(settings, name).lineage("t").publisher is None
    assert not (tmp_path / "generations").exists()
    assert not (runs / "student").exists()
    claim_teacher(settings, stream, Publisher(stream.manifest.stream_id, "t", "another", "id", 30))
    distillog.refuse(*start, words=("[publish] every = 40: run 'another' publishes for teacher 't' every 30 orders",))


def test_two_runs_teach_each_other_through_a_teacher_each_and_both_logs_give_their_weights(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, runs, settings = fresh_name("both"), tmp_path / "runs", distillog.settings
    models = {"t": student_model(tmp_path / "t.onnx"), "u": student_model(tmp_path / "u.onnx", 6, 24)}
    stream = moving_stream(settings, name, models["t"])
    add_teacher(settings, stream, describe_model(models["u"], "u", stream.manifest, fetcher(), Declared()))

    def file(run: str, own: str, others: str, hidden: int) -> Path:
        teachers = [{"name": others, "max_age": 3}]
        publish = {"teacher": own}
        return publishing(tmp_path, name, run, publish=publish, teachers=teachers, student={"hidden": [hidden]})

    files = {run: file(run, *words) for run, *words in (("a", "t", "u", 16), ("b", "u", "t", 24))}
    for teacher, model in models.items():
        distillog.start("teach", name, model, "--teacher", teacher, "--threads", 1)
    first = distillog.start("runs", "start", files["a"], "--folder", runs)
    time.sleep(1.0)  # it waits for the other's first word
    second = distillog.start("runs", "start", files["b"], "--folder", runs)
    follow = ("--follow", "a", "--follow", "b", "--pace", "slowest", "--lead", "16:32")
    distillog.start("feed", name, *follow, "--quiet")
    for run in (first, second):
        run.succeed(120)
    assert max(labelled_by(settings, name, "t")) >= 2
    assert max(labelled_by(settings, name, "u")) >= 2
    for run, words in (("a", ("t", "u", 16)), ("b", ("u", "t", 24))):
        replay = file(f"replay-{run}", *words)
        distillog.succeed("runs", "start", replay, "--folder", runs, "--quiet")
        assert weights(runs, f"replay-{run}") == weights(runs, run)
        assert report(runs, f"replay-{run}")["too_old_rows"] == report(runs, run)["too_old_rows"]
        assert report(runs, f"replay-{run}")["generations"]["compared"] == [1, 2, 3, 4]


def test_a_resume_makes_the_folder_of_its_generations_before_the_first_one_is_due(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, runs, settings = fresh_name("moved"), tmp_path / "runs", distillog.settings
    model = student_model(tmp_path / "first.onnx")
    moving_stream(settings, name, model, epochs=1)
    label_all(distillog, name, model)
    folder = ("--folder", runs, "--quiet")
    distillog.succeed("runs", "start", publishing(tmp_path, name), "--set", "train.steps=50", *folder)
    elsewhere = tmp_path / "another" / "place"
    moved = ("--set", "train.steps=0", "--set", f"publish.to={elsewhere}")
    distillog.succeed("runs", "resume", "student", *moved, *folder)
    assert report(runs)["generations"]["published"] == [1, 2]
    assert [Path(each.model).parent for each in open_stream(settings, name).lineage("t").generations] == [elsewhere] * 2
