"""What counts as a hang."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.models import classifier
from support.streams import fetcher, teacher_record

from pipeline.metrics import Heart
from schemas.errors import WorkerHung
from teacher_service import watchdog as watchdog_module
from teacher_service.models.session import OnnxTeacher
from teacher_service.parcels import Parcels
from teacher_service.stages import Stages
from teacher_service.watchdog import Watchdog


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    from schemas.codecs import CodecSpec

    path = classifier(tmp_path / "m.onnx")
    model = OnnxTeacher(path, teacher_record(path), threads=1)
    return Stages(fetcher(), model, Parcels(model.teacher, CodecSpec(), "orders"), lambda parcel: None)


def test_an_idle_stage_never_hangs_and_a_busy_one_does_at_ten_times_its_usual_time(stages: Stages) -> None:
    dog = Watchdog(stages)
    dog.check()
    stages.inferring.smoothed = 5.0
    stages.inferring.since = time.monotonic() - 45.0
    dog.check()
    stages.inferring.since = time.monotonic() - 51.0
    with pytest.raises(WorkerHung, match=r"inference of one order takes longer than 50 s"):
        dog.check()
    dog.release()


def test_the_heart_beats_while_a_worker_is_watched_and_rests_while_it_is_not(stages: Stages) -> None:
    heart = Heart(0.05)
    dog = Watchdog(stages, heart)
    dog.check()
    assert heart.silent > 0
    with dog.disarmed():  # reading a log to its end
        time.sleep(0.1)
        assert (heart.silent, heart.alive) == (0.0, True)
    dog.check()
    time.sleep(0.1)
    assert not heart.alive
    dog.release()
    assert heart.alive


def test_a_first_order_may_take_minutes(stages: Stages) -> None:
    dog = Watchdog(stages)
    stages.inferring.since = time.monotonic() - 120.0
    dog.check()
    stages.inferring.since = time.monotonic() - watchdog_module.FIRST_DEADLINE - 1.0
    with pytest.raises(WorkerHung):
        dog.check()
    dog.release()


def test_a_first_order_after_a_self_check_has_ten_times_what_that_took_or_two_minutes(stages: Stages) -> None:
    dog = Watchdog(stages)
    clock = stages.inferring
    for seconds, deadline in ((0.01, watchdog_module.COLD_DEADLINE), (30.0, 300.0)):
        clock.measured(1000 * seconds, 1000)
        clock.start(1)
        clock.since = time.monotonic() - deadline + 5.0
        dog.check()
        clock.since = time.monotonic() - deadline - 5.0
        with pytest.raises(WorkerHung):
            dog.check()
    dog.release()


def test_a_polling_thread_that_hangs_is_ended_by_the_backstop() -> None:
    code = (
        "import time; from types import SimpleNamespace; from teacher_service import watchdog\n"
        "from teacher_service.clock import Clock\n"
        "watchdog.FIRST_DEADLINE = 0.1; watchdog.BACKSTOP = 0.2\n"
        "watchdog.Watchdog(SimpleNamespace(loading=Clock(), inferring=Clock())).check()\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert time.monotonic() - began < 50


def test_a_process_that_was_frozen_for_longer_than_a_hang_may_last_goes_on_when_it_wakes() -> None:
    code = (
        "import time; from types import SimpleNamespace; from teacher_service import watchdog\n"
        "from teacher_service.clock import Clock\n"
        "watchdog.FIRST_DEADLINE = 0.1\n"
        "dog = watchdog.Watchdog(SimpleNamespace(loading=Clock(), inferring=Clock()))\n"
        "dog.check(); print('armed', flush=True); input()\n"
        "dog.check(); dog.release(); print('awake', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "armed\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)  # the backstop of old would have gone off after 2.1
        process.send_signal(signal.SIGCONT)
        assert process.communicate("\n", timeout=60)[0] == "awake\n"
    assert process.returncode == 0
