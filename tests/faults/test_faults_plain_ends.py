"""What a program cannot mend is one clear line and a clean stop; what it can wait for, and all of it goes on."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from support.log_checker import assert_nothing_lost, check_labels, check_orders
from support.models import classifier
from support.processes import PATIENCE, TESTS, Child, Distillog, assert_no_traceback, distillog_commands
from support.small_runs import checkpoints, report, run_file, weights
from support.streams import stream_with_teacher

from pipeline.broker.local import LocalBroker
from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import run_group, teacher_group
from pipeline.streams import Stream
from schemas.errors import BrokerUnavailable

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.faults,
    pytest.mark.timeout(480),
]

SHAPE = (1, 40)
ORDERS = 120
DATASET = f"mnist1d?split=train&n={8 * ORDERS}"
OPTIONS = {"order_size": 8, "partitions": 8}
STREAM = "s"
AWAY = 121.0
"""Seconds for which a broker is out of reach."""
QUEUE = 64
"""Connections that fill the queue of a frozen broker (50 of them), as many clients that try again would."""
Wait = Callable[..., Any]


@pytest.fixture(autouse=True)
def collected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level("CRITICAL", "kafka")  # what it logs of a refused connection would keep the socket
    yield
    gc.collect()


class Live:
    """Feeder, worker and student at work on one stream, with a broker of their own."""

    def __init__(self, distillog: Distillog, broker: LocalBroker, folder: Path, eventually: Wait) -> None:
        self.distillog, self.broker, self.folder, self.runs = distillog, broker, folder, folder / "runs"
        self.model = classifier(folder / "teacher.onnx", SHAPE, slow=3000)
        self.stream: Stream = stream_with_teacher(distillog.settings, STREAM, self.model, DATASET, OPTIONS)
        self._eventually = eventually

    def begin(self, num_workers: int = 1, starve: float = 300.0, **env: str) -> None:
        """Start all of them, and return when the student has a checkpoint."""
        file = run_file(self.folder, STREAM, starve={"warning": 8.0, "timeout": starve})
        follow = ("--follow", "student", "--lead", "8:16", "--follow-timeout", 30)
        self.feeder = self.distillog.start("feed", STREAM, *follow, **env)
        self.workers = [self.teach(f"w{number}", **env) for number in range(num_workers)]
        self.student = self.distillog.start("runs", "start", file, "--folder", self.runs, **env)
        self._eventually(lambda: checkpoints(self.runs), PATIENCE, "a checkpoint")
        assert self.student.running

    def teach(self, worker: str, *more: object, **env: str) -> Child:
        return self.distillog.start("teach", STREAM, self.model, "--worker", worker, "--threads", 1, *more, **env)

    def end_as_if_nothing_had_been(self, timeout: float = 150.0) -> None:
        """All of them end well by themselves, no label is lost, and the weights are those of a replay, to the bit."""
        self.student.succeed(timeout)
        self.feeder.succeed()
        for worker in self.workers:
            worker.terminate()
            worker.succeed()
        self.same_as_replayed()

    def same_as_replayed(self) -> None:
        settings = self.distillog.settings
        assert_nothing_lost(check_orders(settings, self.stream), "orders")
        assert_nothing_lost(check_labels(settings, self.stream), "labels")
        replay = run_file(self.folder, STREAM, "replay")
        self.distillog.succeed("runs", "start", replay, "--folder", self.runs, "--quiet")
        assert weights(self.runs) == weights(self.runs, "replay")
        print(f"longest wait of the student: {report(self.runs)['timing']['longest_wait_s']:.1f} s")


def live_on(broker: LocalBroker, folder: Path, eventually: Wait, closing: ExitStack) -> Live:
    settings = KafkaSettings(broker.bootstrap_servers)
    return Live(closing.enter_context(distillog_commands(settings, folder)), broker, folder, eventually)


@pytest.fixture
def live(own_broker: LocalBroker, tmp_path: Path, eventually: Wait) -> Iterator[Live]:
    with ExitStack() as closing:
        yield live_on(own_broker, tmp_path, eventually, closing)


@pytest.fixture
def forgetful(tmp_path: Path, eventually: Wait) -> Iterator[Live]:
    """Its broker forgets the offsets of groups a minute after their last commit or member."""
    expire = {"offsets.retention.minutes": "1", "offsets.retention.check.interval.ms": "1000"}
    broker = LocalBroker(tmp_path / "own-broker", settings=expire)
    broker.start()
    try:
        with ExitStack() as closing:
            yield live_on(broker, tmp_path, eventually, closing)
    finally:
        broker.kill()


def fill_queue(servers: str) -> list[socket.socket]:
    """Connect to a frozen broker until it takes no connection any more."""
    host, _, port = servers.partition(":")
    sockets = []
    for _ in range(QUEUE):
        made = socket.socket()
        made.setblocking(False)
        made.connect_ex((host, int(port)))
        sockets.append(made)
    return sockets


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_all_go_on_by_themselves_after_a_broker_was_out_of_reach_for_two_minutes(how: str, live: Live) -> None:
    live.begin(num_workers=2)
    began = time.monotonic()
    sockets: list[socket.socket] = []
    if how == "killed":
        live.broker.kill()
    else:
        assert live.broker.pid
        os.kill(live.broker.pid, signal.SIGSTOP)
        sockets = fill_queue(live.broker.bootstrap_servers)
    # Others, meanwhile, are told in one line.
    servers = live.broker.bootstrap_servers
    for command in (("topics", "lag", STREAM), ("topics", "describe", STREAM), ("runs", "resume", "student")):
        more = ("--folder", live.runs) if command[0] == "runs" else ()
        other = live.distillog.start(*command, *more, DISTILLOG_BOOTSTRAP_TIMEOUT="2")
        other.refuse("trains in this run folder" if more else f"no answer from Kafka at {servers}; is it running?")
    for child in (live.feeder, live.student, *live.workers):
        child.wait_for(f"warning: .*Kafka at {servers}.*", AWAY)
    time.sleep(max(0.0, began + AWAY - time.monotonic()))
    if how == "killed":
        live.broker.start()
    else:
        os.kill(live.broker.pid or 0, signal.SIGCONT)
    for each in sockets:
        each.close()
    live.end_as_if_nothing_had_been()


def test_no_question_to_a_frozen_broker_lasts_until_its_asker_is_taken_for_one_that_hangs(
    own_broker: LocalBroker,
) -> None:
    with closing(KafkaCluster(KafkaSettings(own_broker.bootstrap_servers)).admin(patience=5.0)) as admin:
        admin.identities(["nowhere"])
        assert own_broker.pid
        os.kill(own_broker.pid, signal.SIGSTOP)
        sockets = fill_queue(own_broker.bootstrap_servers)
        lasted = []
        for _ in range(5):
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                admin.identities(["nowhere"])
            lasted.append(time.monotonic() - began)
        for each in sockets:
            each.close()
    print(lasted)
    assert max(lasted) < 20.0  # a worker that asks is given 32 s for all that it does in one turn


@pytest.mark.short
def test_a_broker_whose_disk_is_full_says_so_and_all_go_on_when_there_is_room(live: Live, eventually: Wait) -> None:
    folder = live.broker.folder.path
    live.begin()
    assert live.broker.pid
    # No file may grow beyond this: a disk that is full at that place, and needs no right to mount one.
    resource.prlimit(live.broker.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    eventually(lambda: live.broker.pid is None, 60, "the broker's end")
    said = live.distillog.call("broker", "status", "--folder", folder)
    assert said.exit_code == 1
    assert said.stdout.startswith(f"no broker runs in {folder}; the last one ended by itself (")
    assert "File too large; see" in said.stdout
    assert said.stdout.endswith("mend that, then `distillog broker start`\n")
    live.student.wait_for("warning: no soft targets.*Kafka gives no answer.*`distillog broker status`")
    live.broker.start()
    live.end_as_if_nothing_had_been()
    live.distillog.succeed("broker", "stop", "--folder", folder)
    assert live.distillog.call("broker", "status", "--folder", folder).stdout == f"no broker runs in {folder}\n"


DELETED = {
    # topic: (who cannot go on while they run, whom it is refused to afterwards)
    "manifest": ({"feeder", "worker", "student"}, {"lag", "describe", "feed", "teach", "resume"}),
    "work-orders": ({"feeder", "worker", "student"}, {"lag", "describe", "feed", "teach", "resume"}),
    "soft-targets.t": ({"worker", "student"}, {"lag", "describe", "teach", "resume"}),
    "dead-letters": ({"worker", "student"}, {"lag", "describe", "teach", "resume"}),
}


@pytest.mark.parametrize("kind", DELETED)
def test_a_topic_deleted_under_a_run_is_one_line_for_all_who_need_it(kind: str, live: Live) -> None:
    topic, (under, after) = f"{STREAM}.{kind}", DELETED[kind]
    repair = "run the same `distillog topics create` again" if kind == "dead-letters" else "what it held is lost"
    live.begin(starve=60.0)
    with admin_client(live.distillog.settings) as admin:
        admin.delete_topics([topic])
    running = {"feeder": live.feeder, "worker": live.workers[0], "student": live.student}
    for who in sorted(under):
        running[who].refuse(f"topic {topic}", "delete", repair, timeout=50.0)
    live.feeder.terminate()
    live.feeder.wait()
    assert_no_traceback(live.feeder.stderr)
    commands = {
        "lag": ("topics", "lag", STREAM),
        "describe": ("topics", "describe", STREAM),
        "feed": ("feed", STREAM),
        "teach": ("teach", STREAM, live.model),
        "resume": ("runs", "resume", "student", "--folder", live.runs),
    }
    for command in sorted(after):
        live.distillog.start(*commands[command]).refuse(f"topic {topic}", "delete", repair)
    if kind == "dead-letters":  # which nobody waits for
        settings = ("--order-size", 8, "--partitions", 8, "--codec", "float32")
        live.distillog.succeed("topics", "create", STREAM, "--dataset", DATASET, *settings)
        live.distillog.succeed("feed", STREAM)
        live.teach("again", "--until-idle").succeed()
        live.distillog.succeed("runs", "resume", "student", "--folder", live.runs, "--quiet")
        live.same_as_replayed()
    else:
        live.distillog.succeed("topics", "delete", STREAM, "--yes")


def test_groups_whose_offsets_expired_go_on_behind_what_they_had_done(forgetful: Live, eventually: Wait) -> None:
    live, settings = forgetful, forgetful.distillog.settings
    live.begin()
    run, teacher = run_group(live.stream.manifest, "student"), teacher_group(live.stream.manifest, "t")
    with admin_client(settings) as admin:

        def offsets(group: str) -> bool:
            return bool(admin.list_group_offsets({group: None})[group])

        admin.delete_groups([run])  # it has no members, so that anybody may
        eventually(lambda: offsets(run), 30, "another report of the run")
        live.workers[0].terminate()
        live.workers[0].succeed()
        before = live.distillog.succeed("topics", "lag", STREAM)
        eventually(lambda: not offsets(teacher), 150, "the end of the teacher's offsets")
        assert offsets(run)
    assert live.student.running
    lag = live.distillog.succeed("topics", "lag", STREAM)
    labelled = [next(line for line in said.splitlines() if "orders labelled" in line) for said in (before, lag)]
    assert (
        labelled[0].split(", group")[0] == labelled[1].split(", group")[0]
    )  # how far it is, the labels themselves say
    live.workers = [live.teach("late")]
    live.workers[0].wait_for("warning: .*soft targets and no committed offset: going on behind those")
    live.end_as_if_nothing_had_been()


@pytest.mark.short
def test_a_run_folder_removed_under_a_live_student_ends_it_and_nothing_else(live: Live) -> None:
    live.begin()
    # At one blow: a checkpoint that is written meanwhile would be left over.
    (live.runs / "student").rename(live.folder / "removed")
    shutil.rmtree(live.folder / "removed")
    live.student.refuse(f"{live.runs}/student: the run's folder, or the lock in it, was removed")
    assert list(live.runs.iterdir()) == []
    live.feeder.wait_for("run student did not report for .* following it no longer")
    live.feeder.succeed()
    live.distillog.succeed("feed", STREAM)
    live.distillog.succeed("runs", "start", live.folder / "student.toml", "--folder", live.runs, "--quiet")
    live.workers[0].terminate()
    live.workers[0].succeed()
    live.same_as_replayed()


DAY = 86_400


@pytest.mark.short
def test_a_clock_that_jumps_misleads_nobody(live: Live, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    fake = {
        "DISTILLOG_TEST_CLOCK": str(clock),
        "PYTHONPATH": os.pathsep.join((str(TESTS / "support/clock"), str(TESTS))),
    }
    live.begin(**fake)
    for ahead in (DAY, -DAY, 0, 400 * DAY):
        clock.write_text(str(ahead))
        lag = live.distillog.succeed("topics", "lag", STREAM, "--rates")
        run = next(line for line in lag.splitlines() if line.startswith("run student"))
        seconds = float(run.split(", reported ")[1].split()[0])
        assert seconds < 30 or ": done" in run, lag  # it reports every second while it trains
    live.end_as_if_nothing_had_been()
    assert "no longer" not in live.feeder.stderr
