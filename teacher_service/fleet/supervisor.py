"""The supervisor of `distillog teach` processes on one machine: as many as are needed, and none that stays dead."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.limits import SAME_LABEL
from pipeline.names import teacher_group
from pipeline.processes import DISTILLOG, HeardProcess
from pipeline.progress import Progress
from pipeline.reports import read_report
from pipeline.streams import open_stream
from schemas.errors import ConfigError, DistillogError
from schemas.names import check_label
from schemas.records import Teacher
from teacher_service.fleet.metrics import Supervising
from teacher_service.fleet.places import Place, find_places
from teacher_service.fleet.readings import Figures, Watch, size_reading
from teacher_service.fleet.size import FleetSize, Patience
from teacher_service.fleet.slot import Limits, Slot
from teacher_service.fleet.table import table
from teacher_service.serve import find_teacher

log = logging.getLogger(__name__)

TICK = 0.05
"""seconds between two looks at the workers"""
ANSWER = 2.0
"""seconds for Kafka's answer about a worker that died, while the others are not looked after"""
FIRST_START = 15.0
"""seconds that a worker's start is taken to last before one was seen"""


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What a user may say about a fleet."""

    least: int = 1
    """workers that always run"""
    most: int | None = None
    """workers at once; None: one for each GPU, else for each core, but 8 at most"""
    run: str | None = None
    """the run whose pace decides; None: work is done as fast as can be"""
    gpus: tuple[str, ...] = ()
    """as CUDA_VISIBLE_DEVICES names them; none: all"""
    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """of the fleet: its workers are NAME-1, NAME-2, ..., and no others of the teacher may be called so"""
    teacher: str | None = None
    """as `TeachOptions` has it, and so have those that follow"""
    dataset: str | None = None
    provider: str = "auto"
    threads: int = 0
    """of one inference; 0: a worker's share of the cores"""
    loaders: int = 1
    loader_processes: bool = False
    session_timeout: float = 6.0
    data_retry: float = 60.0
    agreement: float = SAME_LABEL
    until_idle: bool = False
    """end when every work order that there is has been labelled"""
    quiet: bool = False
    read_every: float = 2.0
    """seconds between two readings of the stream"""
    limits: Limits = field(default_factory=Limits)
    patience: Patience = field(default_factory=Patience)


class Fleet:
    """Runs in the thread that calls `run`; the workers end with that thread."""

    def __init__(
        self,
        settings: KafkaSettings,
        stream_name: str,
        model: Path,
        options: FleetOptions,
        progress: Progress,
        relay: Callable[[str], None],
        main_options: Sequence[str] = (),
    ) -> None:
        """Check what can be checked before a worker starts.

        Args:
            settings: the cluster.
            stream_name: the stream.
            model: the teacher's ONNX file.
            options: what is asked for.
            progress: shows figures, and what the fleet does.
            relay: prints a line of a worker, its name before it.
            main_options: what to write before `teach`.

        Raises:
            ConfigError, StreamNotFound, ManifestMismatch, BrokerUnavailable: as named.
            NotAuthorized: the stream may not be read, or reports of the run not be seen.
        """
        check_label("fleet", f"{options.name}-999")
        stream = open_stream(settings, stream_name)
        teacher = find_teacher(stream, model, options.teacher)
        places = find_places(options.most, options.provider, options.gpus, options.threads)
        places = places[: stream.manifest.partitions]  # a worker more would have none
        least = options.least
        if least > len(places):
            raise ConfigError(f"--min {least}: there is room for {len(places)} workers (--max, GPUs, partitions)")
        self._settings, self._stream, self._teacher = settings, stream, teacher
        self._options = options
        self._progress = progress
        self._relay = relay
        self._group = teacher_group(stream.manifest, teacher.name)
        self._command = [str(DISTILLOG), *main_options, *_teach(stream_name, model, teacher, options)]
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("DISTILLOG_TEACH_")}
        self._slots = [
            Slot(f"{options.name}-{number}", place, self._launch, options.limits)
            for number, place in enumerate(places, 1)
        ]
        self._size = FleetSize(
            least,
            len(places),
            stream.manifest.order_size,
            stream.manifest.partitions,
            options.run is not None,
            options.session_timeout,
            options.patience,
        )
        if options.run is not None:
            with closing(KafkaCluster(settings).admin()) as admin:
                read_report(admin, stream.manifest, options.run)  # may it be followed?
        self._watch = Watch(settings, stream, teacher.name, options.read_every)
        self._admin = KafkaCluster(settings).admin(ANSWER)
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._figures: Figures | None = None
        self._start = FIRST_START
        self._worked = False
        self._missed_run = False
        self._idle = False
        self.now = Supervising()

    @property
    def teacher(self) -> str:
        """Name of the teacher whose workers they are."""
        return self._teacher.name

    def stop(self) -> None:
        """Let all workers finish the order in hand and leave, then end."""
        self._stop.set()

    def run(self) -> None:
        """Work until stopped, or idle (if asked to).

        Raises:
            FleetFailed: the workers cannot work, or one of them crashes again and again.
        """
        self._progress.message(
            f"teacher {self._teacher.name!r} of stream {self._stream.manifest.stream!r}: "
            f"{self._options.least} to {len(self._slots)} workers"
        )
        self._watch.start()
        try:
            while not self._stop.is_set():
                self._look()
                if self._idle and all(slot.free for slot in self._slots):
                    return
                self._resize()
                self._staff()
                self._note()
                self._stop.wait(TICK)
        finally:
            self._drain()
            self._watch.close()
            self._admin.close()
            self.now.end()

    def _launch(self, name: str, place: Place) -> HeardProcess:
        self.now.started += 1
        process = HeardProcess(
            name,
            [*self._command, "--worker", name, "--threads", str(place.threads)],
            lambda line: self._heard.put(f"{name}: {line}"),
            environment={**self._environment, **place.environment},
            cores=place.cores,
        )
        self._progress.message(f"{name} starts on {place.name}, process {process.pid}")
        return process

    def _look(self) -> None:
        """Look after the workers: pass on what they say, and replace the dead."""
        for slot in self._slots:
            now = time.monotonic()
            ended = slot.look(now)
            if ended is None:
                continue
            joined = slot.ready_at is not None
            if ended.popen.returncode:
                joined |= self._forget(slot.name)
            self._hear()
            if not slot.wanted:
                self._progress.message(f"{slot.name} {_how_it_left(ended)}")
            elif ended.popen.returncode == 0 and self._options.until_idle:
                slot.wanted = False
                self._idle = True
            else:
                labelled = self._figures.teacher.labelled if self._figures else 0
                how = slot.again(ended, now, self._worked, joined, labelled)
                self.now.replaced += 1
                self._progress.message(f"{slot.name} {how}")
        self._hear()

    def _hear(self) -> None:
        while not self._heard.empty():
            self._relay(self._heard.get())

    def _forget(self, name: str) -> bool:
        """Let a dead worker leave its group at once: without that the others take over when its session ends.

        Returns:
            Whether it was a member.
        """
        try:
            gone = [member.member_id for member in self._admin.members(self._group) if member.name == name]
            if len(gone) > 1:
                log.warning(
                    "%s: %d workers of the teacher are called so, and which of them died its session alone tells: give "
                    "each fleet a --name of its own",
                    name,
                    len(gone),
                )
            else:
                self._admin.remove(self._group, gone)
            return bool(gone)
        except DistillogError as error:
            log.warning("%s stays in its group for %g s: %s", name, self._options.session_timeout, error)
            return False

    def _resize(self) -> None:
        """Take the next reading, if there is one, and decide."""
        if self._watch.failure is not None:
            raise self._watch.failure
        figures = self._watch.latest
        if figures is None or figures is self._figures:
            return
        self._figures = figures
        running = [slot for slot in self._slots if slot.wanted and slot.process is not None]
        workers = figures.teacher.workers
        for slot in running:
            if slot.name not in workers or slot.began >= figures.time:
                continue
            if slot.ready_at is None:
                slot.ready_at, self._worked = figures.time, True
                self._start = figures.time - slot.began
            if speed := workers[slot.name].samples_per_second:
                slot.order_seconds = self._stream.manifest.order_size / speed
        self._look_for_run(figures)
        if figures.teacher.settled and not self._idle:
            before = self._size.workers
            names = [slot.name for slot in running]
            size = self._size.decide(size_reading(figures, names, self._start, self._options.run))
            if size.workers != before:
                self._progress.message(f"{before} -> {size.workers} workers: {size.why}")
        self._show(figures)

    def _look_for_run(self, figures: Figures) -> None:
        """Say once that the followed run is not there, and that it is: a mistyped one never comes."""
        run, there = self._options.run, [one.name for one in figures.stream.runs]
        if run is None or (run in there) != self._missed_run:
            return
        self._missed_run = not self._missed_run
        if not self._missed_run:
            self._progress.message(f"run {run} is here")
            return
        known = f"of this stream are {', '.join(there)}" if there else "no run of this stream has"
        self._progress.message(f"run {run} has not reported yet ({known}): {self._options.least} workers until it does")

    def _staff(self) -> None:
        """Have as many workers wanted as the size says."""
        now = time.monotonic()
        wanted = [slot for slot in self._slots if slot.wanted]
        missing = 0 if self._idle else self._size.workers - len(wanted)
        for slot in [slot for slot in self._slots if slot.free][: max(0, missing)]:
            slot.want(now)
        # Those that wait to be started again go first, then the last ones.
        leaving = sorted(reversed(wanted), key=lambda slot: slot.process is not None)
        for slot in leaving[: max(0, -missing)]:
            slot.dismiss(now)

    def _drain(self) -> None:
        """Ask all to leave, at once, and wait until they have; those that do not in time are killed."""
        for slot in self._slots:
            slot.dismiss(time.monotonic())
        while any(slot.process is not None for slot in self._slots):
            self._look()
            self._note()
            time.sleep(TICK)

    def _note(self) -> None:
        """Take down how things stand."""
        now = self.now
        now.heart.beat()
        running = [slot for slot in self._slots if slot.process is not None]
        now.running, now.wanted = len(running), sum(slot.wanted for slot in self._slots)
        now.joined = sum(slot.ready_at is not None for slot in running)
        now.figures, now.pace = self._figures, self._size.pace if self._options.run else None

    def _show(self, figures: Figures) -> None:
        running = sum(slot.process is not None for slot in self._slots)
        elsewhere = len(figures.teacher.workers.keys() - {slot.name for slot in self._slots})
        self._progress.table(table(self._slots, figures, time.monotonic()))
        self._progress.update(
            workers=f"{running} ({self._options.least} to {len(self._slots)})",
            elsewhere=elsewhere or None,
            labelled=f"{figures.teacher.labelled:,}/{figures.stream.fed:,} orders",
            labelled_per_s=figures.teacher.labelled_per_second,
            run_takes=f"{self._size.pace:,.0f} samples/s" if self._options.run else None,
        )


def _teach(stream: str, model: Path, teacher: Teacher, options: FleetOptions) -> list[str]:
    words = ["teach", stream, str(model), "--supervised", f"--teacher={teacher.name}", f"--provider={options.provider}"]
    words += [f"--session-timeout={options.session_timeout}", f"--data-retry={options.data_retry}"]
    words += [f"--agreement={options.agreement}"]
    words += [f"--loaders={options.loaders}"] + ["--loader-processes"] * options.loader_processes
    words += [f"--dataset={options.dataset}"] if options.dataset else []
    return words + ["--until-idle"] * options.until_idle + ["--quiet"] * options.quiet


def _how_it_left(ended: HeardProcess) -> str:
    code = ended.popen.returncode
    return "left" if code in (0, -signal.SIGTERM) else f"left with exit code {code}: {ended.last_words()}"
