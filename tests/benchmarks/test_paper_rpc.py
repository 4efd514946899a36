"""The RPC reader that is compared with: in order, with a window of requests, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from benchmarks.paper.rpc import Connection, Floats, answer_all, labelled, window


class Counting(Connection):
    """Keeps how many requests were on their way at most, to all teachers together."""

    under_way = most = 0

    def send(self, rows: Floats) -> None:
        super().send(rows)
        Counting.under_way += 1
        Counting.most = max(Counting.most, Counting.under_way)

    def receive(self) -> Floats | None:
        answer = super().receive()
        Counting.under_way -= 1
        return answer


def teach(student: Connection) -> None:
    with suppress(ConnectionError):
        answer_all(student, lambda rows: rows[:, :2] * 10)


@pytest.fixture
def teachers() -> Iterator[list[Connection]]:
    """Two, each behind a socket."""
    Counting.under_way = Counting.most = 0
    pairs = [socket.socketpair() for _ in "ab"]
    threads = []
    for _, there in pairs:
        threads.append(threading.Thread(target=teach, args=(Connection(there, (3,)),), daemon=True))
        threads[-1].start()
    here = [Counting(own, (2,)) for own, _ in pairs]
    yield here
    for each in here:
        each.close()
    for thread in threads:
        thread.join(5.0)
    for _, there in pairs:
        there.close()


def batches(count: int) -> list[Floats]:
    return [np.full((4 + number % 2, 3), number, np.float32) for number in range(count)]


def test_labels_come_in_order_and_no_more_than_the_window_is_under_way(teachers: list[Connection]) -> None:
    sent = batches(20)
    for number, (batch, logits) in enumerate(labelled(sent, lambda batch: batch, teachers)):
        assert batch is sent[number]
        assert np.array_equal(logits, np.full((len(batch), 2), 10 * number, np.float32))
    assert number == 19
    assert Counting.most == window(2) == 6
    # Samples one way, logits the other, and four bytes for the number of rows each way.
    assert sum(each.num_bytes for each in teachers) == sum(4 * batch.size + 4 * 2 * len(batch) + 8 for batch in sent)


def test_a_teacher_that_is_gone_ends_it(teachers: list[Connection]) -> None:
    answers = labelled(batches(20), lambda batch: batch, teachers)
    next(answers)
    teachers[1]._socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionError):
        list(answers)
