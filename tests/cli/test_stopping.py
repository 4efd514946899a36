"""How commands end that are asked to: one rule for SIGTERM and one for Ctrl-C, on real processes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.models import classifier
from support.processes import Child, Distillog
from support.small_runs import checkpoints, run_file
from support.streams import stream_with_teacher

from pipeline.status import lag
from pipeline.stop_signals import INTERRUPTED

pytestmark = pytest.mark.kafka


@pytest.fixture(autouse=True)
def heard_ctrl_c() -> Iterator[None]:
    """Children hear Ctrl-C even where a shell started the tests in the background, and with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def at_work(distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path) -> Callable[[str], Child]:
    """Starts a command on a stream without orders, and waits until it waits for them."""
    name, model = fresh_name("stop"), classifier(tmp_path / "teacher.onnx")
    stream_with_teacher(distillog.settings, name, model)
    file = run_file(tmp_path, name, starve={"warning": 0.2})
    commands: dict[str, tuple[tuple[object, ...], str]] = {
        "feed": (("feed", name, "--follow", "nobody", "--json"), "run nobody has not reported yet"),
        "teach": (("teach", name, model, "--threads", 1), "partitions 4"),
        "fleet": (("fleet", name, model, "--threads", 1, "--max", 1, "--name", "w"), "w-1: teacher 't' of stream"),
        "capture": (("capture", name, tmp_path / "labels", "--follow"), "t 0/41"),
        "runs start": (("runs", "start", file, "--folder", tmp_path / "runs"), "no soft targets for sequence 0"),
        "topics lag": (("topics", "lag", name, "--watch"), ""),
    }

    def start(command: str) -> Child:
        arguments, sign = commands[command]
        child = distillog.start(*arguments)
        child.wait_for(sign)
        return child

    return start


SAVING = ("feed", "teach", "fleet", "capture", "runs start")


@pytest.mark.parametrize("command", SAVING)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, INTERRUPTED)])
def test_work_in_hand_is_finished_and_the_exit_code_says_who_asked(
    command: str, number: signal.Signals, code: int, at_work: Callable[[str], Child], tmp_path: Path
) -> None:
    child = at_work(command)
    child.send(number)
    assert child.wait() == code, repr(child)
    child.assert_clean()
    if command == "feed":
        assert json.loads(child.stdout)["why"] == "stopped"
    elif command == "teach":
        assert "labelled 0 orders" in child.stderr
    elif command == "fleet":
        assert "w-1 left\nworkers started: 1, in the place of one that died: 0\n" in child.stderr
    elif command == "capture":
        assert "0 of 41 orders of teacher t (0 new)" in child.stdout
    else:
        assert "stopped; go on with `distillog runs resume student` at step 0" in child.stdout
        assert checkpoints(tmp_path / "runs")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, INTERRUPTED)])
def test_a_command_with_nothing_to_save_ends_at_once(
    number: signal.Signals, code: int, at_work: Callable[[str], Child], eventually: Callable[..., object]
) -> None:
    child = at_work("topics lag")
    eventually(lambda: child.stdout, 60, "the first reading")
    child.send(number)
    assert child.wait(10) == code, repr(child)
    child.assert_clean()


def test_a_supervised_worker_takes_the_death_of_its_supervisor_for_sigterm_however_often_it_is_told(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path, eventually: Callable[..., object]
) -> None:
    name, model = fresh_name("stop"), classifier(tmp_path / "teacher.onnx")
    stream = stream_with_teacher(distillog.settings, name, model)
    child = distillog.start("teach", name, model, "--threads", 1, "--supervised")
    eventually(lambda: lag(distillog.settings, stream).teachers[0].members, 60, "the worker in its group")
    for _ in range(3):
        child.send(signal.SIGHUP)
    child.succeed()
    assert "labelled 0 orders" in child.stderr
    assert "partitions" not in child.stderr  # figures are the supervisor's business
