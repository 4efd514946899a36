"""The work loop of a teacher: poll, hand over, commit what is whole.

The main thread polls and commits at least every 100 ms, so a rebalance never waits for an order; loading, inference
and publishing run beside it (stages.py, publisher.py). What may be committed each partition's chain knows (chain.py),
whose partitions are whose the leases (leases.py).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field

from pipeline.complaints import Complaints
from pipeline.fault_limit import FaultLimit
from pipeline.feed import batch_bytes
from pipeline.kafka.log import Cluster
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, teacher_group, work_orders_topic
from pipeline.record_size import teacher_record_bytes
from pipeline.sequence import Sequence
from pipeline.streams import Stream, TopicGuard
from pipeline.views.fetch import Fetcher
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable, DistillogError, LoaderLost, StreamChanged, WorkerHung
from teacher_service.apart.child import encode_task
from teacher_service.apart.suspects import Suspects
from teacher_service.leases.chain import Job, Parcel
from teacher_service.leases.intake import Intake
from teacher_service.leases.leases import Leases
from teacher_service.metrics import Labelling, WorkerReport
from teacher_service.models.session import OnnxTeacher
from teacher_service.moving import Moving
from teacher_service.parcels import Parcels
from teacher_service.publisher import Publisher
from teacher_service.shares.asking import GAIN, Asking
from teacher_service.shares.bidding import Bidding
from teacher_service.stages import DATA_RETRY, Sample, Stages
from teacher_service.watchdog import Watchdog

log = logging.getLogger(__name__)

POLL = 0.1
"""seconds of one poll"""
IN_HAND_HIGH = 512
"""work orders taken before polling pauses; they are small"""
IN_HAND_LOW = 128
COMMIT_EVERY = 0.1
"""seconds between commits"""
FINISH = 30.0
"""seconds for the orders in hand of a worker that leaves, or three times as long as one takes"""
END = 60.0
"""seconds for a worker that has finished to leave its group and close its clients"""
LAST_COMMIT = 5.0
"""seconds for the commit of a worker that leaves"""
BYTES_IN_FLIGHT = 32 << 20
JOIN_PATIENCE = 300.0
"""seconds without a settled membership after which a worker gives up: longer than a rebalance may take"""
IDLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How one worker behaves; what it labels is the manifest's business."""

    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """shown in group listings and written into the headers of what it publishes"""
    session_timeout: float = 6.0
    """seconds until a frozen or dead worker is replaced; 6 is the lowest that a default broker allows"""
    until_idle: bool = False
    """end when every work order that there is has been labelled"""
    data_retry: float = DATA_RETRY
    """seconds for which a dataset that cannot be read is tried again"""


class Worker:
    """One member of a teacher's consumer group."""

    def __init__(
        self,
        cluster: Cluster,
        stream: Stream,
        fetcher: Fetcher,
        model: OnnxTeacher,
        options: WorkerOptions,
        progress: Callable[[WorkerReport, int], None] = lambda report, partitions: None,
        measured: tuple[float, float] = (0.0, 0.0),
        moving: Moving | None = None,
    ) -> None:
        """Make one; it does nothing before `run`.

        Args:
            cluster, stream, fetcher, model, options: what it works with.
            progress: called about once a second with what it did and how many partitions it has.
            measured: seconds that a sample took to load and to infer, of an earlier look; 0: not known.
            moving: what knows of the teacher's generations; None: it stays what `model` is.
        """
        manifest = stream.manifest
        self.report = WorkerReport()
        self.now = Labelling(self.report)
        self._cluster = cluster
        self._manifest = manifest
        self._teacher = model.teacher
        self._options = options
        self._progress = progress
        self._moving = moving
        self._orders = work_orders_topic(manifest.stream)
        self._targets = soft_targets_topic(manifest.stream, model.teacher.name)
        self._letters = dead_letters_topic(manifest.stream)
        self._stop = threading.Event()
        self._faults = FaultLimit()
        self._counting = threading.Lock()
        record_bytes = teacher_record_bytes(manifest, model.teacher)
        parcels = Parcels(model.teacher, manifest.codec, self._orders, manifest.schema_fingerprints)
        self._stages = Stages(
            fetcher, model, parcels, self._publish, options.data_retry, Sample.of(manifest, model.teacher)
        )
        sequence = Sequence.of(manifest)
        self._suspects = Suspects(
            # The first order is known to be well here: the model was checked with it.
            lambda model: encode_task(
                fetcher, model, manifest.codec, options.data_retry, sequence.sample_ids(0), sequence.view_seed(0)
            ),
            lambda: self._stages.model,
            manifest.num_samples,
            parcels,
            self._publish,
        )
        for clock, seconds in zip((self._stages.loading, self._stages.inferring), measured, strict=True):
            clock.measured(seconds, 1)
        self._publisher = Publisher(
            lambda: cluster.appender(max_record_bytes=record_bytes),
            self._targets,
            self._letters,
            [("worker", options.name.encode())],
            record_bytes,
            max(2, min(32, BYTES_IN_FLIGHT // record_bytes)),
            self._count,
        )

    @property
    def teacher(self) -> str:
        """Name of the teacher for whom it works."""
        return self._teacher.name

    def stop(self) -> None:
        """Finish the order in hand, commit, leave."""
        self._stop.set()

    def run(self) -> WorkerReport:
        """Work until stopped, idle (if asked to), or failed.

        Raises:
            StreamChanged, LogTrimmed, SequenceGap, BadSamples, DataUnavailable, DeliveryFailed, WorkerHung, ChildLost,
            BrokerUnavailable, NotAuthorized: as their names say; what was acknowledged is committed, the rest is not.
        """
        try:
            self._run()
        except BrokerUnavailable as error:
            if not self._stop.is_set():
                raise
            log.warning("stopped without an answer from Kafka: %s", error)  # asked to end, and it does
        return self.report

    def _run(self) -> None:
        watchdog = Watchdog(self._stages, self.now.heart)
        with ExitStack() as closing:
            closing.callback(self.now.end)
            closing.callback(watchdog.release)
            topics = [manifest_topic(self._manifest.stream), self._orders, self._targets, self._letters]
            guard = TopicGuard(self._cluster, topics)
            closing.callback(guard.close)
            if (there := guard.num_partitions(self._orders)) != self._manifest.partitions:
                raise StreamChanged(
                    f"topic {self._orders} has {there} partitions, its manifest {self._manifest.partitions}: somebody "
                    "added some; make the stream anew"
                )
            closing.callback(self._publisher.close)
            member = self._cluster.member(
                teacher_group(self._manifest, self._teacher.name),
                self._orders,
                name=self._options.name,
                session_timeout=self._options.session_timeout,
                # Small fetches, and all that came at once: each partition has its turn, so orders come nearly in
                # sequence. A poll that takes less leaves one partition half read, which the next fetch passes over.
                fetch_bytes=2 * batch_bytes(self._manifest),
                bid=lambda: bidding.bid(),  # asked for in polls, so when there is one
            )
            with ExitStack() as joined:
                joined.callback(member.close)
                leases = Leases(
                    self._cluster,
                    member,
                    self._manifest,
                    self._teacher,
                    lambda: self._publisher.generation,
                    watchdog.disarmed,
                )
                closing.callback(leases.close)
                # Before all clients beside it: a member that polls no more keeps the others waiting for a minute.
                closing.push(joined.pop_all())
            bidding = Bidding(
                self._manifest,
                self._teacher,
                leases.chains,
                leases.admin,
                lambda: self._stages.speed,
                lambda: self._stages.stuck() | self._suspects.partitions | leases.on_trial,
            )
            self._publisher.start()
            self._stages.start()
            self._suspects.start()
            if self._moving:
                closing.callback(self._moving.stop)
                self._moving.start(self._stages)
            try:
                with watchdog:
                    self._loop(leases, bidding, guard, watchdog)
                    if gave_up := self._finish(leases, watchdog):
                        watchdog.expect_end()
                watchdog.end_within(END)
            except (WorkerHung, LoaderLost):
                # At once, and nothing else: the others wait for its partitions, and see that it left without grace.
                raise
            except BaseException:
                self._leave(leases)
                raise
            self._leave(leases, gave_up)

    def _loop(self, leases: Leases, bidding: Bidding, guard: TopicGuard, watchdog: Watchdog) -> None:
        """Poll, hand over, commit what is whole."""
        intake = Intake(self._manifest, leases, guard)
        committed = shown = time.monotonic()
        idle = Deadline(IDLE_SECONDS)
        asking, complaints = Asking(), Complaints(log)
        while not self._stop.is_set():
            watchdog.check()
            self._raise_failure()
            try:
                leases.balance(IN_HAND_HIGH, IN_HAND_LOW)
                intake.take(leases.poll(POLL))
                if leases.unheld or time.monotonic() - committed >= COMMIT_EVERY:
                    committed = time.monotonic()
                    leases.commit(1.0)
            except BrokerUnavailable as error:
                complaints.warn(f"{error}; trying again")
                self._stop.wait(0.5)
            self._begin(leases.to_begin())
            self._ask(leases, bidding, asking, intake, watchdog)
            guard.check()
            leases.refuse_long_wait(JOIN_PATIENCE)
            if time.monotonic() - shown >= 1.0:
                shown = time.monotonic()
                self.report.repetitions = intake.repetitions
                self.now.look(leases, self._stages, self._publisher)
                self._progress(self.report, len(leases.chains))
                if not self._options.until_idle or intake.waiting or not self._is_idle(leases):
                    idle = Deadline(IDLE_SECONDS)
                elif idle.over:
                    return

    def _ask(self, leases: Leases, bidding: Bidding, asking: Asking, intake: Intake, watchdog: Watchdog) -> None:
        """Ask for other shares where speeds or a stream's end make these bad ones."""
        now = time.monotonic()
        if leases.num_rebalances != self.report.rebalances:
            self.report.rebalances = leases.num_rebalances
            asking.shared_out(now, bidding.last.speed)
        me = leases.member_id
        idle = me is not None and (bidding.freed or not (leases.in_hand or intake.waiting))
        if (speed := asking.look(now, self._stages.speed, idle)) is None or me is None:
            return
        try:
            with watchdog.disarmed():
                would_gain = bidding.gain(me, speed)
        except BrokerUnavailable as error:
            log.debug("asking what others have to do: %s", error)
            return
        if would_gain >= GAIN:
            log.info("asking for other shares: all would be done %.0f %% sooner", 100 * (1 - 1 / would_gain))
            leases.ask_anew()

    def _begin(self, jobs: list[Job]) -> None:
        """Hand jobs over: orders that may have ended their workers to a process of their own."""
        suspicious = [job for job in jobs if job.chain.suspects(job)]
        self._stages.add([job for job in jobs if job not in suspicious])
        for job in suspicious:
            self._suspects.add(job)

    def _finish(self, leases: Leases, watchdog: Watchdog) -> set[int]:
        """Let the jobs that were begun end, so that nobody needs to repeat them.

        Returns:
            Partitions of which an order did not end in its time.
        """
        not_begun = self._stages.clear() + self._suspects.clear()
        slowest = max(self._stages.loading.smoothed, self._stages.inferring.smoothed)
        deadline = Deadline(max(FINISH, 3 * slowest))
        while leases.begun > sum(not job.chain.over for job in not_begun):
            if deadline.over:
                return self._stages.stuck() | self._suspects.partitions
            watchdog.check()
            self._raise_failure()
            try:
                leases.stay()
            except DistillogError as error:
                log.debug("polling while leaving: %s", error)
        return set()

    def _leave(self, leases: Leases, gave_up: Collection[int] = ()) -> None:
        """Commit what is acknowledged, also after a failure, so that nobody repeats it; and that it leaves."""
        self._stages.stop()
        self._suspects.stop()
        leases.leave(gave_up)
        if not leases.commit(LAST_COMMIT):
            log.warning("the last commit was not taken: what it covers is in the log, and will be labelled again")

    def _raise_failure(self) -> None:
        failure = self._stages.failure or self._suspects.failure or self._publisher.failure
        if failure is not None:
            raise failure

    def _publish(self, parcel: Parcel) -> None:
        """Hand a parcel to the publisher; runs in the threads that label."""
        if parcel.num_rows:
            # Rows that end a process are no matter of a mount.
            num_faults = parcel.num_faults - parcel.num_deadly
            with self._counting:
                self._faults.add(parcel.job.sequence, parcel.num_rows, num_faults, parcel.reason)
        self._publisher.submit(parcel)

    def _count(self, parcel: Parcel) -> None:
        """Count what was acknowledged; runs in the publisher's thread."""
        if parcel.value is None:
            self.report.not_orders += 1
        else:
            self.report.orders += 1
            self.report.samples += parcel.num_rows - parcel.num_faults
            self.report.faults += parcel.num_faults

    def _is_idle(self, leases: Leases) -> bool:
        if leases.in_hand or any(chain.dirty for chain in leases.chains.values()):
            return False
        try:
            return leases.group_is_done()
        except BrokerUnavailable:
            return False
