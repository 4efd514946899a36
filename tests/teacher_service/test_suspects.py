"""Suspicious orders in child processes, which samples end as crashes and hangs do."""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.models import classifier
from support.streams import fetcher, manifest, order, teacher_record

from pipeline.sequence import Sequence
from pipeline.wait import Deadline
from schemas.codecs import CodecSpec, Dense
from schemas.errors import ChildLost
from schemas.records import DeadLetter, SoftTargets, TeacherInput
from teacher_service import watchdog
from teacher_service.apart import suspects
from teacher_service.apart.child import encode_task
from teacher_service.apart.parent import Child
from teacher_service.apart.suspects import Suspects
from teacher_service.leases.chain import Chain, Job, Mark, Parcel
from teacher_service.models.session import OnnxTeacher
from teacher_service.parcels import Parcels
from teacher_service.stages import Stages

pytestmark = pytest.mark.timeout(180)

PIXELS = (TeacherInput("x", "pixels", "float32", "nchw", 1.0, ()),)
SEQUENCE, N = 3, 8
CODEC = CodecSpec("float32")


class Bench:
    """Orders of N samples, labelled in calls of 3, in this process and in a child."""

    def __init__(self, folder: Path, order_size: int) -> None:
        self.folder = folder / "fatal"
        self.folder.mkdir(exist_ok=True)
        path = classifier(folder / "m.onnx", (1, 8, 8))
        self.source = fetcher("support.fatal_data:numbered", "support.fatal_data:fatal", folder=str(self.folder))
        self.manifest = manifest(self.source, order_size=order_size)
        self.ids = order(self.manifest, SEQUENCE).sample_ids.tolist()
        self.model = OnnxTeacher(path, teacher_record(path, inputs=PIXELS, inference_batch=3), threads=1)
        self.parcels = Parcels(self.model.teacher, CODEC, "s.work-orders")
        self.done: queue.Queue[Parcel] = queue.Queue()
        sequence = Sequence.of(self.manifest)
        self.suspects = Suspects(
            lambda model: encode_task(self.source, model, CODEC, 1.0, sequence.sample_ids(0), sequence.view_seed(0)),
            lambda: self.model,
            self.manifest.num_samples,
            self.parcels,
            self.done.put,
        )

    def let(self, row: int, how: str) -> Path:
        """Let a sample of the order be fatal."""
        file = self.folder / f"{self.ids[row]}.{how}"
        file.touch()
        return file

    def deaths(self, row: int) -> int:
        return len((self.folder / f"{self.ids[row]}.died").read_text().split())

    def job(self, sequence: int = SEQUENCE) -> Job:
        chain = Chain(sequence % 4, 1, Mark(sequence // 4, sequence), 4)
        return chain.accept(sequence // 4, order(self.manifest, sequence))

    def apart(self) -> Parcel:
        """The order's parcel, as a child labels it."""
        self.suspects.start()
        self.suspects.add(self.job())
        deadline = Deadline(120.0)
        while True:
            if self.suspects.failure is not None:
                raise self.suspects.failure
            try:
                return self.done.get(timeout=0.2)
            except queue.Empty:
                assert not deadline.over

    def here(self) -> Parcel:
        """The same by the stages of this process."""
        stages = Stages(self.source, self.model, self.parcels, self.done.put)
        stages.add([self.job()])
        stages.start()
        try:
            return self.done.get(timeout=20)
        finally:
            stages.stop()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, N)
    yield made
    made.suspects.stop()


def rows(parcel: Parcel) -> dict[int, npt.NDArray[np.float32]]:
    """Sample -> its logits."""
    assert parcel.value is not None
    targets = SoftTargets.decode(parcel.value, "")
    values = targets.output("logits").values()
    assert isinstance(values, Dense)
    return dict(zip(targets.kept_sample_ids.tolist(), np.asarray(values.logits), strict=True))


def letters(parcel: Parcel) -> dict[int | None, DeadLetter]:
    """Row -> its dead letter."""
    return {letter.row: letter for letter in (DeadLetter.decode(raw, "") for raw in parcel.letters)}


def test_a_child_labels_as_its_worker_does_to_the_bit(bench: Bench) -> None:
    bench.let(2, "unreadable")
    parcel = bench.apart()
    assert parcel.value == bench.here().value
    assert parcel.letters == bench.here().letters
    assert (parcel.num_rows, parcel.num_faults, parcel.num_deadly) == (N, 1, 0)
    assert bench.suspects.failure is None


def test_a_row_that_ends_a_child_twice_is_dead_lettered_and_no_other_is_touched(bench: Bench) -> None:
    whole = rows(bench.here())
    bench.let(4, "SIGSEGV")
    bench.let(6, "unreadable")
    parcel = bench.apart()
    assert (parcel.num_rows, parcel.num_faults, parcel.num_deadly) == (N, 2, 1)
    there = letters(parcel)
    assert list(there) == [4, 6]
    assert there[4].sample_id == bench.ids[4]
    assert there[4].reason == "ended the process that labelled it alone, twice: SIGSEGV"
    assert "cut short" in there[6].reason
    assert bench.deaths(4) == 5  # of 8, 4 and 2 rows, and twice alone
    found = rows(parcel)
    assert found.keys() == set(bench.ids) - {bench.ids[4], bench.ids[6]}
    assert all(np.array_equal(found[one], whole[one]) for one in found)


def test_labels_beside_a_deadly_row_are_those_of_an_order_in_which_it_cannot_be_decoded(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    file = bench.let(0, "SIGABRT")
    with caplog.at_level(logging.WARNING, "teacher_service"):
        value = bench.apart().value
    assert "child process: Fatal Python error: Aborted" in caplog.text
    assert 'fatal_data.py", line' in caplog.text  # where it was
    file.rename(file.with_suffix(".unreadable"))
    assert bench.here().value == value


def test_a_row_that_hangs_is_found_within_the_watchdogs_deadlines(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "COLD_DEADLINE", 1.0)
    monkeypatch.setattr(watchdog, "MIN_DEADLINE", 1.0)
    monkeypatch.setattr(watchdog, "FACTOR", 0.0)
    bench.let(7, "hang")
    parcel = bench.apart()
    assert letters(parcel)[7].reason == "ended the process that labelled it alone, twice: no answer within 1 s"
    assert parcel.num_deadly == 1
    assert len(rows(parcel)) == N - 1


def test_a_row_that_ends_a_child_once_is_labelled(bench: Bench) -> None:
    bench.let(3, "once")
    parcel = bench.apart()
    assert parcel.num_faults == 0
    assert bench.deaths(3) == 1
    assert parcel.value == bench.here().value


def test_rows_that_are_deadly_together_alone_are_labelled_in_pieces(bench: Bench) -> None:
    whole = rows(bench.here())
    bench.let(6, f"with-{bench.ids[1]}")
    parcel = bench.apart()
    assert parcel.num_faults == 0
    found = rows(parcel)
    assert list(found) == bench.ids
    assert all(np.array_equal(found[one], whole[one]) for one in found)


def test_an_order_whose_every_row_is_deadly_goes_to_the_dead_letters_by_row(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 2)
    bench.let(0, "SIGFPE")
    bench.let(1, "SIGBUS")
    parcel = bench.apart()
    bench.suspects.stop()
    assert rows(parcel) == {}
    assert [letters(parcel)[row].reason.split()[-1] for row in (0, 1)] == ["SIGFPE", "SIGBUS"]


def test_storage_that_hangs_for_long_blames_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, 2)
    for name in ("COLD_DEADLINE", "MIN_DEADLINE"):
        monkeypatch.setattr(watchdog, name, 1.0)
    monkeypatch.setattr(watchdog, "FACTOR", 0.0)
    cached = order(bench.manifest, 0).sample_ids.tolist()
    for sample in set(range(bench.manifest.num_samples)) - set(cached):
        (bench.folder / f"{sample}.hang").touch()
    with pytest.raises(ChildLost, match=r"ends whatever labels it .*, as others do \(no answer within \d s\): a mount"):
        bench.apart()
    bench.suspects.stop()
    assert bench.done.empty()


def test_few_rows_that_hang_are_not_waited_for_as_a_whole_order_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "COLD_DEADLINE", 4.0)
    monkeypatch.setattr(watchdog, "MIN_DEADLINE", 1.0)
    monkeypatch.setattr(watchdog, "FACTOR", 0.0)
    bench.let(7, "hang")
    with caplog.at_level(logging.WARNING, "teacher_service"):
        parcel = bench.apart()
    waits = [text.partition("within ")[2].split()[0] for text in caplog.messages if "rows ended their process" in text]
    assert waits == ["4", "2", "1"]
    assert "no answer within 1 s" in letters(parcel)[7].reason


def test_more_deadly_rows_than_samples_can_be_are_the_fault_of_something_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "MOST_DEADLY", 1)
    bench.let(0, "SIGABRT")
    bench.let(1, "SIGABRT")
    with pytest.raises(ChildLost, match=rf"order {SEQUENCE}: more than 1 of its samples .*SIGABRT.*mount that hangs"):
        bench.apart()
    assert bench.done.empty()


@pytest.mark.parametrize(
    ("how", "said"),
    [("SIGKILL", "SIGKILL, as the system does"), ("memory", "out of memory: std::bad_alloc"), ("exit", "exit code 3")],
)
def test_a_child_that_is_killed_or_lacks_memory_is_no_fault_of_a_sample(bench: Bench, how: str, said: str) -> None:
    bench.let(4, how)
    with pytest.raises(ChildLost, match=rf"order {SEQUENCE}: .*{said}.* nothing of it was committed"):
        bench.apart()
    assert bench.deaths(4) == 1
    assert bench.done.empty()


def test_a_child_that_ends_on_samples_that_are_well_blames_no_row(bench: Bench) -> None:
    (bench.folder / f"{order(bench.manifest, 0).sample_ids[0]}.SIGSEGV").touch()
    with pytest.raises(ChildLost, match=r"SIGSEGV.* known to be well"):
        bench.apart()


def test_a_child_labels_with_no_other_model_than_its_workers(bench: Bench) -> None:
    classifier(bench.model.path, (1, 8, 8), seed=7)  # a new version, put in the place of the one that runs
    with pytest.raises(ChildLost, match=r"m\.onnx .* is not the model of teacher 't' .*nothing of it was committed"):
        bench.apart()


def test_a_lease_that_ends_meanwhile_gives_the_order_up(
    bench: Bench, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "COLD_DEADLINE", 1.0)
    monkeypatch.setattr(watchdog, "MIN_DEADLINE", 1.0)
    monkeypatch.setattr(watchdog, "FACTOR", 0.0)
    bench.let(5, "hang")
    job = bench.job()
    bench.suspects.start()
    bench.suspects.add(job)
    eventually((bench.folder / f"{bench.ids[5]}.died").exists, 60, "the hang")
    job.chain.end()
    bench.suspects.add(bench.job(7))
    assert bench.done.get(timeout=60).job.sequence == 7
    assert bench.deaths(5) == 1


def test_a_child_that_hangs_before_it_reads_a_long_order_is_waited_for_no_longer_than_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "imports").mkdir()
    (tmp_path / "imports" / "sitecustomize.py").write_text("import time; time.sleep(100)")
    monkeypatch.syspath_prepend(str(tmp_path / "imports"))
    monkeypatch.setattr(watchdog, "FIRST_DEADLINE", 1.0)
    task, sequence = encode_task(bench.source, bench.model, CODEC, 1.0, np.arange(3), 0), bench.job().sequence
    child = Child(({**task[0], "filled up": "x" * (1 << 20)}, task[1]), threading.Event())  # longer than a pipe
    began = time.monotonic()
    with pytest.raises(ChildLost, match="no answer within 1 s"):
        child.label(sequence, np.arange(3), 0)
    assert time.monotonic() - began < 20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends with its order")
def test_a_child_dies_with_its_worker(bench: Bench, eventually: Callable[..., Any]) -> None:
    bench.let(5, "hang")
    code = (
        "import sys; from pathlib import Path\n"
        "from test_suspects import Bench\n"
        f"Bench(Path(sys.argv[1]), {N}).apart()\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    worker = subprocess.Popen([sys.executable, "-c", code, bench.folder.parent], env={**os.environ, "PYTHONPATH": path})
    died = bench.folder / f"{bench.ids[5]}.died"
    try:
        eventually(lambda: died.exists() and died.read_text().endswith("\n"), 60, "the hang")
        child = int(died.read_text())
        assert child != worker.pid
        os.kill(child, 0)
    finally:
        worker.kill()
        worker.wait(10)
    eventually(lambda: not Path(f"/proc/{child}").exists(), 10, "the end of the child")
