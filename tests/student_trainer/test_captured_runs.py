"""Runs that learn from captured files: to the same bits as from the log, without a broker, and back to the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from captured_streams import NUM_ORDERS, digits_logs, labels, without_kafka
from reader_logs import Logs
from support.captures import files_of
from support.processes import Distillog
from support.small_runs import checkpoints, report, run_file, weights

from pipeline.captured.contents import Contents

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture
def logs(distillog: Distillog, fresh_name: Callable[[str], str]) -> Iterator[Logs]:
    with digits_logs(distillog.settings, fresh_name("captured")) as made:
        yield made


@pytest.mark.faults
@pytest.mark.short
def test_a_run_learns_the_same_from_files_without_a_broker_and_may_change_between_both(
    logs: Logs, distillog: Distillog, tmp_path: Path
) -> None:
    stream, runs, folder = logs.stream.manifest.stream, tmp_path / "runs", tmp_path / "labels"
    for teacher in ("t", "u"):
        logs.write(teacher, *labels(logs, teacher, *range(8), *range(4, NUM_ORDERS)))  # 4 to 7 come twice

    def file(name: str) -> Path:
        teachers = [{"name": "t", "weight": 2.0}, {"name": "u"}]
        return run_file(tmp_path, stream, name, teachers=teachers, evaluation={"dataset": "digits?split=test"})

    both = ("--teacher", "t", "--teacher", "u")
    said = distillog.succeed("capture", stream, folder, *both, "--max-file-size", "64KiB", "--quiet")
    assert f"{folder}: 41 of 41 orders of teacher t (41 new)" in said
    assert f"{folder}: 41 of 41 orders of teacher u (41 new)" in said
    assert json.loads(distillog.succeed("capture", stream, folder, *both, "--json"))["teachers"]["u"]["new"] == 0
    distillog.succeed("runs", "start", file("log"), "--folder", runs, "--quiet")
    from_files = ("--set", "source=files", "--set", f"data.files={folder}", "--folder", runs, "--quiet")
    without_kafka("runs", "start", file("files"), *from_files)
    assert weights(runs, "files") == weights(runs, "log")
    assert report(runs, "files")["evaluation"] == report(runs, "log")["evaluation"]
    assert report(runs, "files")["files"] == {"records": 2 * NUM_ORDERS, "rows_left_out": 0}
    for name in ("log", "files"):
        without_kafka("runs", "report", name, "--no-speed", "--folder", runs)
        page = (runs / name / "report.html").read_text()
        assert f"stream {stream} ({logs.stream.manifest.stream_id})" in page
        assert "t, weight 2, SHA-256 " in page
        assert (f"captured in {folder}" in page) == (name == "files")

    cursors = []
    distillog.succeed("runs", "start", file("back"), "--set", "train.steps=30", "--folder", runs, "--quiet")
    cursors.append(newest_cursor(runs))
    resumed = distillog.call("runs", "resume", "back", "--set", "train.steps=60", *from_files)
    assert "resumes with another source was 'stream', is 'files'" in resumed.stderr
    cursors.append(newest_cursor(runs))
    back = ("--set", "source=stream", "--set", "train.steps=0")
    distillog.succeed("runs", "resume", "back", *back, "--folder", runs, "--quiet")
    assert weights(runs, "back") == weights(runs, "log")
    for cursor in cursors:  # the log's offsets, behind the repetitions, whatever the labels came from
        done = [len(range(partition, cursor["sequence"], 4)) for partition in range(4)]
        assert cursor["place"]["offsets"]["u"] == [count + (count > 2) for count in done]

    checked = distillog.succeed("capture", stream, folder, "--check", "--quiet")
    assert "bytes are as listed: 41 of 41 orders of teacher t, 41 of 41 orders of teacher u" in checked
    damage(folder / "u-00001.avro")
    distillog.refuse("capture", stream, folder, "--check", words=("u-00001.avro: is damaged",))
    words = ("u-00001.avro@", "is damaged: order", "capture it again")
    distillog.refuse("runs", "start", file("damaged"), *from_files, words=words)


def newest_cursor(runs: Path) -> dict[str, Any]:
    path = checkpoints(runs, "back")[-1] / "checkpoint.json"
    return dict(json.loads(path.read_text())["checkpoint"]["cursor"])


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1000] ^= 4
    path.write_bytes(raw)


@pytest.mark.faults
@pytest.mark.short
def test_a_capture_that_is_killed_goes_on_and_a_run_ends_where_the_files_do(
    logs: Logs, distillog: Distillog, tmp_path: Path, eventually: Any
) -> None:
    """kill -9 while it follows a teacher of whose orders some are labelled."""
    stream, runs = logs.stream.manifest.stream, tmp_path / "runs"
    folder, whole = tmp_path / "labels", tmp_path / "whole"
    logs.write("w", *labels(logs, "w", *range(20)))
    of_w = ("--teacher", "w", "--max-file-size", "40KiB")
    child = distillog.start("capture", stream, folder, *of_w, "--follow")
    index = folder / "w.index"
    eventually(lambda: index.exists() and index.stat().st_size == 20 * 20, timeout=60.0)
    child.kill()
    logs.write("w", *labels(logs, "w", *range(20, 30)))
    said = distillog.succeed("capture", stream, folder, "--teacher", "w", "--quiet")
    assert f"{folder}: 30 of 41 orders of teacher w (10 new)" in said

    file = run_file(tmp_path, stream, teachers={"name": "w"})
    from_files = ("--set", "source=files", "--set", f"data.files={folder}", "--folder", runs, "--quiet")
    words = ("order 30 is needed", f"`distillog capture {stream} {folder}`", "--set source=stream")
    distillog.refuse("runs", "start", file, *from_files, words=words, code=3)
    other = ("--set", "name=other", "--set", "data.stream=birds")
    words = (f"is captured from stream '{stream}'", "[data] stream is 'birds'")
    distillog.refuse("runs", "start", file, *from_files, *other, words=words)

    logs.write("w", *labels(logs, "w", *range(30, NUM_ORDERS)))
    distillog.succeed("capture", stream, folder, "--teacher", "w", "--quiet")
    distillog.succeed("capture", stream, whole, *of_w, "--quiet")
    assert files_of(folder) == files_of(whole)
    assert len(Contents.read(folder).teachers["w"].files) > 1
    distillog.succeed("runs", "resume", "student", "--folder", runs, "--quiet")
    log = run_file(tmp_path, stream, "log", teachers={"name": "w"})
    distillog.succeed("runs", "start", log, "--folder", runs, "--quiet")
    assert weights(runs) == weights(runs, "log")


def test_a_capture_that_is_refused_says_why_in_one_line(logs: Logs, distillog: Distillog, tmp_path: Path) -> None:
    stream, folder = logs.stream.manifest.stream, tmp_path / "labels"
    distillog.refuse("capture", stream, folder, "--teacher", "x", words=("has no teacher 'x'",))
    distillog.refuse("capture", stream, folder, "--check", words=("holds no captured soft targets",))
    assert "is no size" in distillog.call("capture", stream, folder, "--max-file-size", "much").stderr
    logs.write("t", *labels(logs, "t", 0))
    assert "1 of 41 orders of teacher t" in distillog.succeed("capture", stream, folder, "--teacher", "t", "--quiet")
    distillog.refuse("capture", stream, folder, "--codec", "deflate", words=("is captured with --codec null",))
    checked = json.loads(distillog.succeed("capture", stream, folder, "--check", "--teacher", "t", "--json"))
    assert checked["teachers"]["t"]["orders"] == 1
    distillog.refuse("capture", stream, folder, "--check", "--teacher", "u", words=("no soft targets of teacher 'u'",))
    assert "leave out --follow" in distillog.call("capture", stream, folder, "--check", "--follow").stderr
    distillog.refuse("capture", "birds", folder, "--check", words=(f"is captured from stream '{stream}'",))
