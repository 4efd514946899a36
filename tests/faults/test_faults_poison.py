"""Orders that kill or hang their workers: one costs two of them and its own rows, however many there are."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.processes import Child, Distillog
from support.streams import dead_letters, order

from pipeline import status
from pipeline.names import dead_letters_topic
from pipeline.streams import Stream, open_stream
from pipeline.wait import Deadline
from schemas.codecs import Dense
from schemas.records import SoftTargets

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(400)]

ORDERS, SIZE, PARTITIONS = 48, 8, 4
Logits = dict[int, npt.NDArray[np.float32]]


class Fleet:
    """Three workers on one stream, each started again when it ends; files in `steering` say what ends them."""

    def __init__(self, distillog: Distillog, name: str, folder: Path, steering: Path, hang: str = "") -> None:
        self.distillog = distillog
        self.steering = steering
        self.loaders: tuple[object, ...] = ()
        self.deaths: list[Child] = []
        self.workers: list[Child] = []
        self.model = classifier(folder / "teacher.onnx", (1, 8, 8))
        dataset = f"support.fatal_data:numbered?count={ORDERS * SIZE}{hang and f'&hang={hang}'}"
        view = ("--view", "support.fatal_data:fatal", "--view-param", f"folder={steering}")
        sizes = ("--order-size", SIZE, "--partitions", PARTITIONS, "--codec", "float32")
        distillog.succeed("topics", "create", name, "--dataset", dataset, *view, *sizes)
        distillog.succeed("topics", "add-teacher", name, "t", self.model, "--batch", 3)
        distillog.succeed("feed", name)
        self.stream: Stream = open_stream(distillog.settings, name)

    def sample(self, sequence: int, row: int) -> int:
        return int(order(self.stream.manifest, sequence).sample_ids[row])

    def let(self, sequence: int, row: int, how: str) -> Path:
        """Let a sample of an order be fatal."""
        file = self.steering / f"{self.sample(sequence, row)}.{how}"
        file.touch()
        return file

    def start(self) -> Child:
        name, number = self.stream.manifest.stream, len(self.workers) + len(self.deaths)
        options = ("--worker", f"w{number}", "--threads", 1, "--session-timeout", 2, "--quiet", *self.loaders)
        self.workers.append(self.distillog.start("teach", name, self.model, *options))
        return self.workers[-1]

    def tend(self) -> None:
        """Start again whoever ended."""
        for worker in [one for one in self.workers if not one.running]:
            self.workers.remove(worker)
            self.deaths.append(worker)
            self.start()

    @property
    def labelled(self) -> int:
        """Orders that the group has committed."""
        (teacher,) = status.lag(self.distillog.settings, self.stream).teachers
        return teacher.labelled

    def work(self, until: Callable[[], bool] = lambda: False, patience: float = 240.0) -> None:
        """Keep three workers going until all is labelled, or what is asked for."""
        deadline = Deadline(patience)
        while len(self.workers) < 3:
            self.start()
        while self.labelled < ORDERS and not until():
            assert not deadline.over, f"{self.labelled} orders labelled; {self.deaths}"
            self.tend()
            time.sleep(0.1)

    def leave(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            assert worker.wait() in (0, -signal.SIGTERM), worker  # the latter before it has begun to listen
            worker.assert_clean()
        self.workers.clear()

    def letters(self) -> dict[int, str]:
        """Sample -> the reason of its dead letter; each sample has one."""
        found = dead_letters(self.distillog.settings, dead_letters_topic(self.stream.manifest.stream))
        assert len({letter.sample_id for letter in found}) == len(found)
        return {letter.sample_id: letter.reason for letter in found if letter.sample_id is not None}

    def logits(self) -> Logits:
        """Sample -> what it was labelled with, after a look at the whole log."""
        found = check_labels(self.distillog.settings, self.stream)
        assert_nothing_lost(found)
        labels: Logits = {}
        for one in found.accepted.values():
            assert isinstance(one.record, SoftTargets)
            values = one.record.output("logits").values()
            assert isinstance(values, Dense)
            labels |= dict(zip(one.record.kept_sample_ids.tolist(), values.logits, strict=True))
        return labels


Make = Callable[..., Fleet]


@pytest.fixture
def fleet(distillog: Distillog, fresh_name: Callable[[str], str], steering: Path, tmp_path: Path) -> Make:
    return lambda hang="": Fleet(distillog, fresh_name("poison"), tmp_path, steering, hang)


def undisturbed(fleet: Make, steering: Path) -> Logits:
    """The labels of a run in which nothing is fatal."""
    for file in steering.iterdir():  # before the teacher is added, and tried on samples
        file.unlink()
    made = fleet()
    made.start()
    made.work()
    made.leave()
    assert not made.deaths
    assert made.letters() == {}
    return made.logits()


def assert_same_but(found: Logits, whole: Logits, left_out: set[int]) -> None:
    assert found.keys() == whole.keys() - left_out
    assert all(np.array_equal(found[sample], whole[sample]) for sample in found)


@pytest.mark.short
def test_a_sample_that_kills_workers_takes_two_with_it_and_then_only_itself(fleet: Make) -> None:
    made = fleet()
    made.let(21, 5, "SIGSEGV")
    poison = made.sample(21, 5)
    made.work()
    made.leave()
    assert [worker.popen.returncode for worker in made.deaths] == [-signal.SIGSEGV] * 2
    assert made.letters() == {poison: "ended the process that labelled it alone, twice: SIGSEGV"}
    assert_same_but(made.logits(), undisturbed(fleet, made.steering), {poison})


def test_a_sample_that_kills_the_processes_of_loaders_is_found_as_one_that_kills_workers(fleet: Make) -> None:
    made = fleet()
    made.loaders = ("--loaders", 2, "--loader-processes")
    made.let(21, 5, "SIGSEGV")
    poison = made.sample(21, 5)
    made.work()
    made.leave()
    assert len(made.deaths) == 2
    for worker in made.deaths:
        worker.refuse("dataset support.fatal_data:numbered", "asked for samples", str(poison), "ended (SIGSEGV)")
    assert made.letters() == {poison: "ended the process that labelled it alone, twice: SIGSEGV"}
    assert_same_but(made.logits(), undisturbed(fleet, made.steering), {poison})


def test_a_sample_that_hangs_workers_takes_two_or_three_with_it_and_then_only_itself(fleet: Make) -> None:
    made = fleet(hang="4")
    made.let(22, 0, "hang")
    poison = made.sample(22, 0)
    made.work()
    made.leave()
    for worker in made.deaths:
        worker.refuse("loading of one order takes longer than", "leaving the group so that others take over")
    # One more, if its partition was given to another within the first second: then nobody knows yet that it hangs.
    assert 2 <= len(made.deaths) <= 3
    assert list(made.letters()) == [poison]
    assert "alone, twice: no answer within" in made.letters()[poison]
    assert_same_but(made.logits(), undisturbed(fleet, made.steering), {poison})


def test_workers_that_are_asked_to_leave_in_an_order_that_hangs_count_as_its_victims(fleet: Make) -> None:
    made = fleet(hang="100")  # they are asked long before it is called a hang
    made.let(22, 0, "hang")
    poison = made.sample(22, 0)
    victims = made.steering / f"{poison}.died"
    for number in (1, 2):
        worker = made.start()
        deadline = Deadline(60.0)
        while not victims.exists() or len(victims.read_text().split()) < number:
            assert not deadline.over
            time.sleep(0.1)
        worker.terminate()
        worker.succeed()  # after the half minute that it is given
        made.workers.clear()
    worker = made.start()
    worker.wait_for("order 22: begun before by workers that ended; labelled in a child process", 60)
    (made.steering / f"{poison}.hang").unlink()
    made.work()
    made.leave()
    assert made.letters() == {}


def test_two_deadly_samples_of_partitions_of_their_own_cost_two_workers_each_at_most(fleet: Make) -> None:
    made = fleet()
    made.let(17, 1, "SIGABRT")
    made.let(30, 7, "SIGBUS")
    poison = {made.sample(17, 1), made.sample(30, 7)}
    made.work()
    made.leave()
    assert len(made.deaths) <= 4
    assert made.letters().keys() == poison
    assert_same_but(made.logits(), undisturbed(fleet, made.steering), poison)


def test_workers_killed_again_and_again_dead_letter_nothing(fleet: Make) -> None:
    made = fleet()
    (made.steering / "slow").touch()
    for kills in range(1, 7):
        before = made.labelled
        # The second of each pair dies while partitions are on probation because of the first.
        made.work(lambda before=before: made.labelled > before)  # type: ignore[misc]
        if made.labelled < ORDERS:
            made.workers[kills % 3].kill()
    made.work()
    made.leave()
    assert len(made.deaths) >= 3
    assert made.letters() == {}
    assert_same_but(made.logits(), undisturbed(fleet, made.steering), set())


def test_an_order_whose_workers_are_killed_from_outside_stops_them_and_is_not_given_up(fleet: Make) -> None:
    made = fleet()
    killer = made.let(9, 2, "SIGKILL")
    made.work(lambda: len(made.deaths) >= 3)
    assert [worker.popen.returncode for worker in made.deaths[:2]] == [-signal.SIGKILL] * 2
    made.deaths[2].refuse("order 9", "SIGKILL", "no fault of a sample", "nothing of it was committed")
    killer.unlink()
    made.work()
    made.leave()
    assert made.letters() == {}
    assert_same_but(made.logits(), undisturbed(fleet, made.steering), set())
