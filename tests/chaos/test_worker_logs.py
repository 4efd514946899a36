from __future__ import annotations

import inspect
from pathlib import Path

from chaos.worker_logs import APART, PROBATION, read
from teacher_service.apart import suspects
from teacher_service.leases import leases

WORKER = """\
warning: s.work-orders: the last worker of 3 partitions ended without a word: one order of each at a time, until 8 are
 labelled
warning: order 17: begun before by workers that ended; labelled in a child process
"""
FLEET = """\
fleet-1 starts on core 0, process 71
fleet-1: warning: s.work-orders: the last worker of 1 partitions ended without a word: one order of each at a time
fleet-1: warning: order 17: begun before by workers that ended; labelled in a child process
fleet-1: warning: order 29: begun before by workers that ended; labelled in a child process
fleet-1 was killed by SIGKILL; another one starts now
fleet-2 was killed by SIGSEGV; another one starts now
fleet-2 ended with exit code 75: no answer from Kafka at 127.0.0.1:1; is it running?; another one starts in 1 s
fleet-2 ended with exit code 75: no answer from Kafka at h:1; silent for 300 s, giving up; another one starts now
fleet-2 ended with exit code 70: an order hung; another one starts in 2 s
fleet-1 ended with exit code 1; another one starts now
fleet-1 left
fleet-2 left with exit code -9: it wrote nothing
"""


def test_what_workers_say_is_counted_alone_and_in_a_fleet(tmp_path: Path) -> None:
    logs = [tmp_path / "1-teach.stderr", tmp_path / "2-fleet.stderr"]
    for path, text in zip(logs, (WORKER, FLEET), strict=True):
        path.write_text(text)
    told = read(logs)
    assert (told.probations, told.apart) == (4, {17, 29})
    assert (told.kills, told.refused_starts) == ({"fleet-1": 1}, 1)
    assert [end.partition(" (")[0] for end in told.ends] == [
        "fleet-2 was killed by SIGSEGV",
        "fleet-2 ended with exit code 75: no answer from Kafka at h:1; silent for 300 s, giving up; another one "
        "starts now",
        "fleet-2 ended with exit code 70: an order hung; another one starts in 2 s",
        "fleet-1 ended with exit code 1; another one starts now",
        "fleet-2 left with exit code -9: it wrote nothing",
    ]


def test_the_lines_are_those_that_workers_write() -> None:
    assert PROBATION.search(inspect.getsource(leases).replace("%d", "7"))
    assert APART.search(inspect.getsource(suspects).replace("%d", "7"))
