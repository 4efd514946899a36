"""A fleet of real workers on the real Kafka: the dead are replaced, who is asked to leaves, and nobody is left over."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.processes import TESTS, Child, Distillog
from support.streams import publish, stream_with_teacher

from pipeline import status
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.log import Admin, Commit
from pipeline.names import run_group, soft_targets_topic
from pipeline.progress import Progress
from pipeline.stream_status import TeacherStatus
from pipeline.streams import Stream
from schemas.commits import RunReport
from teacher_service.fleet.size import Patience
from teacher_service.fleet.supervisor import Fleet, FleetOptions

pytestmark = pytest.mark.kafka

ORDERS = 60
SMALL = {"order_size": 8, "partitions": 8}
Wait = Callable[..., Any]


class Place:
    """A stream of 60 orders whose data can be steered, and fleets over it."""

    def __init__(self, distillog: Distillog, name: str, folder: Path, orders: int = ORDERS, slow: int = 0) -> None:
        self.settings = distillog.settings
        self.steering = folder / "steering"
        self.steering.mkdir()
        self.model = classifier(folder / "teacher.onnx", slow=slow)
        dataset = f"support.fault_data:steered?folder={self.steering}&count={orders * 8}"
        self.stream: Stream = stream_with_teacher(distillog.settings, name, self.model, dataset, SMALL)
        self._distillog = distillog
        self._closing = ExitStack()
        # Over the same connections, since it is asked fifty times a second.
        self._read = self._closing.enter_context(status.readings(self.settings, self.stream))

    def close(self) -> None:
        self._closing.close()

    def start(self, *more: object, **env: str) -> Child:
        """Start a fleet whose workers are w-1, w-2, ..."""
        name = self.stream.manifest.stream
        return self._distillog.start("fleet", name, self.model, "--name", "w", "--threads", 1, *more, **env)

    def publish(self, *sequences: int) -> None:
        publish(self.settings, self.stream, sequences or range(ORDERS))

    def teacher(self) -> TeacherStatus:
        (teacher,) = self._read().teachers
        return teacher

    def partitions(self) -> dict[str, int]:
        """Worker -> its partitions."""
        return {name: worker.partitions for name, worker in self.teacher().workers.items()}

    def shared_by_two(self) -> dict[str, int]:
        """As `partitions`, once two workers have them all; {} before."""
        found = self.partitions()
        return found if len(found) == 2 and sum(found.values()) == 8 and all(found.values()) else {}

    def all_labelled(self) -> bool:
        return self.teacher().labelled == ORDERS


@pytest.fixture
def place(distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path) -> Iterator[Place]:
    with closing(Place(distillog, fresh_name("fleet"), tmp_path)) as made:
        yield made


def processes(worker: str, stream: Stream) -> list[int]:
    """Numbers of the processes that run as a worker of that name for the stream."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if worker.encode() in words and stream.manifest.stream.encode() in words and state != "Z":
            found.append(int(folder.name))
    return found


def one_process(worker: str, stream: Stream) -> int:
    (number,) = processes(worker, stream)
    return number


def test_a_killed_worker_leaves_its_group_at_once_and_is_replaced(place: Place, eventually: Wait) -> None:
    fleet = place.start("--min", 2, "--max", 2)
    shares = eventually(place.shared_by_two, 60, "two workers")
    dead, other = sorted(shares, key=lambda name: -shares[name])
    victim = one_process(dead, place.stream)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: place.partitions().get(other) == 8, 20, "the other one with all of it")
    took = time.monotonic() - killed
    print(f"taken over after {took:.1f} s")
    assert took < 4
    fleet.wait_for(f"{dead} was killed by SIGKILL; another one starts now")
    place.publish()
    eventually(lambda: len(place.partitions()) == 2, 60, "its successor")
    assert one_process(dead, place.stream) != victim
    eventually(place.all_labelled, 30, "all labels")
    fleet.terminate()
    fleet.succeed()
    assert_nothing_lost(check_labels(place.settings, place.stream))


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_lets_every_worker_finish_its_order_and_leave(workers: int, place: Place, eventually: Wait) -> None:
    fleet = place.start("--min", workers, "--max", workers, "--session-timeout", 30)
    eventually(lambda: sum(place.partitions().values()) == 8 and len(place.partitions()) == workers, 60, "the workers")
    (place.steering / "hold").touch()
    place.publish()
    eventually((place.steering / "held").exists, 30, "a worker in the middle of an order")
    fleet.terminate()
    (place.steering / "held").unlink()
    fleet.succeed()
    assert place.partitions() == {}  # they left by themselves, long before their sessions end
    assert "w-1: labelled" in fleet.stderr
    # Of two, one may leave while the other's partitions are moving, and then its last commit is not taken.
    assert workers == 2 or place.teacher().labelled > 0
    place.start("--until-idle", "--max", 1).succeed()
    found = check_labels(place.settings, place.stream)
    assert_nothing_lost(found)
    # Where two share, partitions may move by their speeds meanwhile, and what is on its way then comes again.
    assert workers == 2 or found.duplicates == 0


def test_of_two_fleets_with_one_name_neither_takes_the_others_worker_out_of_the_group(
    place: Place, eventually: Wait
) -> None:
    one = ("--min", 1, "--max", 1, "--follow", "nobody")
    fleets = [place.start(*one), place.start(*one)]
    for fleet in fleets:
        fleet.wait_for(r"run nobody has not reported yet \(no run of this stream has\): 1 workers until it does")

    def two() -> set[str]:
        """Member IDs, once two workers share the partitions."""
        found = {worker.member_id: worker.partitions for worker in place.teacher().members}
        return set(found) if len(found) == 2 and all(found.values()) else set()

    before = eventually(two, 60, "two workers")
    os.kill(max(processes("w-1", place.stream)), signal.SIGKILL)
    killed = eventually(lambda: next((fleet for fleet in fleets if "SIGKILL" in fleet.stderr), None), 20, "its death")
    killed.wait_for("w-1: 2 workers of the teacher are called so")
    eventually(lambda: len(two() - before) == 1 and len(two() & before) == 1, 60, "its successor, beside the other")
    for fleet in fleets:
        fleet.terminate()
        fleet.succeed()


def test_a_supervisor_that_is_killed_leaves_no_worker(place: Place, eventually: Wait) -> None:
    fleet = place.start("--min", 2, "--max", 2)
    eventually(place.shared_by_two, 60, "two workers")
    assert one_process("w-1", place.stream)
    fleet.kill()
    eventually(lambda: not processes("w-1", place.stream) + processes("w-2", place.stream), 20, "the workers' end")
    eventually(lambda: not place.partitions(), 3, "an empty group, before any session has ended")


def test_a_worker_that_crashes_again_and_again_ends_the_fleet_with_its_last_words(place: Place, tmp_path: Path) -> None:
    # What OpenMP, OpenBLAS or a driver does with a bad setting: the process dies before a line of ours runs.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'teach' in sys.argv[:5]: print('no device', file=sys.stderr, flush=True); os.abort()\n"
    )
    fleet = place.start(PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}:{TESTS}")
    fleet.refuse("worker w-1 (core", "crashed 5 times in a row", "was killed by SIGABRT: no device")
    assert fleet.stderr.count("w-1: no device") == 5


def test_a_fault_that_cannot_come_right_ends_the_fleet_with_the_workers_own_words(place: Place) -> None:
    fleet = place.start("--dataset", "digits?split=train", "--max", 2)
    assert "worker w-1: " in fleet.refuse("digits?split=train")
    assert fleet.stderr.count("w-1: error: ") == 1
    assert not processes("w-1", place.stream)


def test_a_fault_that_passes_is_waited_for(place: Place, eventually: Wait) -> None:
    fleet = place.start("--data-retry", 0)
    eventually(lambda: place.partitions() == {"w-1": 8}, 60, "a worker")
    fleet.wait_for("workers 1")
    (place.steering / "gone").touch()
    place.publish()
    fleet.wait_for(r"w-1 ended with exit code 75: .*cannot be read.*another one starts")
    fleet.wait_for(r"another one starts in 1 s")
    (place.steering / "gone").unlink()
    eventually(place.all_labelled, 60, "all labels")
    fleet.terminate()
    assert fleet.wait() == 0


def test_until_idle_it_ends_when_all_is_labelled(place: Place) -> None:
    place.publish()
    said = place.start("--max", 2, "--until-idle")
    said.succeed()
    assert place.all_labelled()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--min", 3, "--max", 2), ("--min 3", "room for 2 workers")),
        (("--min", 9, "--max", 9), ("--min 9", "room for 8 workers")),
        (("--gpus", "0", "--provider", "cpu"), ("--gpus 0", "--provider cpu uses none")),
        (("--teacher", "nobody"), ("nobody",)),
    ],
)
def test_what_cannot_be_is_refused_before_a_worker_starts(
    place: Place, distillog: Distillog, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    name = place.stream.manifest.stream
    distillog.refuse("fleet", name, place.model, *options, words=words)


class Student:
    """A run that takes every label as soon as it is there, as far as its reports say."""

    def __init__(self, place: Place) -> None:
        self._place = place
        manifest = place.stream.manifest
        self._group = run_group(manifest, "student")
        self._at = TopicPartition(soft_targets_topic(manifest.stream, "t"), 0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Student:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30.0)

    def _run(self) -> None:
        admin = KafkaCluster(self._place.settings).admin()
        with status.readings(self._place.settings, self._place.stream) as read:
            while not self._over.wait(0.3):
                self._report(admin, read().teachers[0].labelled, "training")
            self._report(admin, 0, "done")
        admin.close()

    def _report(self, admin: Admin, sequence: int, state: str) -> None:
        report = RunReport(0, sequence, 0, time.time(), "0123", "here", state)
        admin.commit(self._group, {self._at: Commit(0, report.encode())})


@pytest.fixture
def running() -> Iterator[Callable[..., Fleet]]:
    """Starts fleets in threads of this process, with settings that no option has."""
    begun: list[tuple[Fleet, threading.Thread]] = []

    def begin(place: Place, said: list[str], **options: Any) -> Fleet:
        name, chosen = place.stream.manifest.stream, FleetOptions(name="w", threads=1, **options)
        kafka = ["--bootstrap-servers", place.settings.bootstrap_servers]
        fleet = Fleet(place.settings, name, place.model, chosen, Progress(quiet=True), said.append, kafka)
        thread = threading.Thread(target=fleet.run, daemon=True)
        thread.start()
        begun.append((fleet, thread))
        return fleet

    yield begin
    for fleet, thread in begun:
        fleet.stop()
        thread.join(60.0)
        assert not thread.is_alive()


@pytest.mark.faults
def test_a_run_that_takes_more_than_one_worker_makes_gets_another_until_it_is_done(
    distillog: Distillog,
    fresh_name: Callable[[str], str],
    tmp_path: Path,
    running: Callable[..., Fleet],
    eventually: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / "slow").mkdir()
    with closing(Place(distillog, fresh_name("fleet"), tmp_path / "slow", orders=600, slow=40_000)) as place:
        place.publish(*range(600))
        patience = Patience(pace=2.0, settle=1.0, idle=3.0, cycle=2.0)
        running(place, [], most=2, run="student", read_every=0.5, patience=patience)
        eventually(lambda: place.partitions() == {"w-1": 8}, 60, "the first worker")
        with Student(place):
            eventually(lambda: set(place.partitions()) == {"w-1", "w-2"}, 60, "another worker")
        assert place.teacher().labelled < 600
        eventually(lambda: set(place.partitions()) == {"w-1"}, 60, "one worker alone")
