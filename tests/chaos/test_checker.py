"""The checker finds what is planted; it reads no Kafka here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chaos.checker import Checked, Facts, Logs, Row, check_logs, check_trace

FACTS = Facts("s", "t", num_samples=21, order_size=4, epochs=2, partitions=3, broken=frozenset({5}))
BATCH = 6


def column(values: list[int]) -> dict[str, Any]:
    return {"dtype": "uint8", "shape": [len(values)], "data": np.array(values, np.uint8).tobytes()}


def samples(number: int) -> list[int]:
    epoch, place = divmod(number, FACTS.orders_per_epoch)
    order = [(sample * 5 + epoch) % FACTS.num_samples for sample in range(FACTS.num_samples)]
    return order[place * FACTS.order_size : (place + 1) * FACTS.order_size]


def label(number: int, kept: list[int] | None = None) -> dict[str, Any]:
    ids = samples(number)
    rows = [row for row, sample in enumerate(ids) if sample not in FACTS.broken] if kept is None else kept
    return {
        "stream_id": "1",
        "sequence": number,
        "sample_ids": column(ids),
        "kept_rows": None if len(rows) == len(ids) else column(rows),
        "outputs": [{"columns": [{"shape": [len(rows), 10]}]}],
    }


def letter(number: int, row: int) -> dict[str, Any]:
    where = {"topic": "s.work-orders", "partition": number % 3, "offset": number // 3}
    return where | {"sequence": number, "row": row, "sample_id": samples(number)[row], "reason": "broken"}


class Planted(Logs):
    """The logs of a stream to which nothing has happened."""

    def __init__(self) -> None:
        numbers = range(FACTS.num_orders)
        self.orders: dict[int, list[Row]] = {0: [], 1: [], 2: []}
        self.labels: dict[int, list[Row]] = {0: [], 1: [], 2: []}
        self.letters: dict[int, list[Row]] = {0: []}
        for number in numbers:
            self.append(
                self.orders[number % 3], {"stream_id": "1", "sequence": number, "sample_ids": column(samples(number))}
            )
            self.append(self.labels[number % 3], label(number))
            for row, sample in enumerate(samples(number)):
                if sample in FACTS.broken:
                    self.append(self.letters[0], letter(number, row))

    @staticmethod
    def append(log: list[Row], datum: dict[str, Any]) -> None:
        log.append(Row(len(log), datum, repr(datum).encode()))


def check(logs: Planted) -> tuple[Checked, dict[int, list[int]]]:
    found = Checked()
    return found, check_logs(logs, FACTS, found)


def test_a_log_to_which_nothing_happened_is_in_order() -> None:
    found, kept = check(Planted())
    assert (found.lost, found.duplicates, found.early, found.dead_letters, found.problems) == (0, 0, 0, 2, [])
    assert sum(map(len, kept.values())) == 2 * 20


def test_repetitions_and_what_came_too_early_are_counted_and_no_fault() -> None:
    logs = Planted()
    logs.labels[1].insert(2, logs.labels[1][0])
    logs.labels[2].insert(1, logs.labels[2][-1])
    logs.append(logs.letters[0], logs.letters[0][0].datum)
    found, _ = check(logs)
    assert (found.lost, found.duplicates, found.early, found.repeated_letters, found.problems) == (0, 1, 1, 1, [])


def lose_a_label(logs: Planted) -> None:
    del logs.labels[0][1]


def swap_labels(logs: Planted) -> None:
    logs.labels[0][1:3] = logs.labels[0][2:0:-1]


def repeat_with_other_bytes(logs: Planted) -> None:
    logs.append(logs.labels[0], logs.labels[0][0].datum | {"outputs": []})


def lose_an_order(logs: Planted) -> None:
    del logs.orders[2][0]


def change_the_samples(logs: Planted) -> None:
    logs.orders[1][0].datum["sample_ids"] = column([0, 0, 0, 0])


def leave_out_a_sound_row(logs: Planted) -> None:
    logs.labels[0][0] = Row(0, label(0, kept=[1, 2, 3]), b"")


def lose_a_letter(logs: Planted) -> None:
    del logs.letters[0][0]


def send_a_letter_for_a_sound_row(logs: Planted) -> None:
    logs.append(logs.letters[0], letter(3, 0))


def address_a_letter_wrongly(logs: Planted) -> None:
    logs.letters[0][0].datum["offset"] += 1


def mix_streams(logs: Planted) -> None:
    logs.labels[1][1].datum["stream_id"] = "2"


@pytest.mark.parametrize(
    ("plant", "lost"),
    [
        (lose_a_label, 3),  # and with it all that come behind it in its partition
        (swap_labels, 2),
        (repeat_with_other_bytes, 0),
        (lose_an_order, 4),
        (change_the_samples, 0),
        (leave_out_a_sound_row, 0),
        (lose_a_letter, 0),
        (send_a_letter_for_a_sound_row, 0),
        (address_a_letter_wrongly, 0),
        (mix_streams, 0),
    ],
)
def test_what_is_planted_in_a_log_is_found(plant: Callable[[Planted], None], lost: int) -> None:
    logs = Planted()
    plant(logs)
    found, _ = check(logs)
    assert found.problems
    assert found.lost == lost


def lines(kept: dict[int, list[int]], passes: int) -> list[dict[str, Any]]:
    rows = [
        (number_of_pass, number, row, sample)
        for number_of_pass in range(passes)
        for number in range(FACTS.num_orders)
        for row, sample in enumerate(kept[number])
    ]
    steps = [rows[at : at + BATCH] for at in range(0, len(rows) - BATCH + 1, BATCH)]
    return [
        {"step": step + 1, "orders": [[*row[:3], 1] for row in taken], "samples": [row[3] for row in taken]}
        for step, taken in enumerate(steps)
    ]


def trace_of(path: Path, trace: list[dict[str, Any]]) -> Checked:
    found = Checked()
    (path / "r").mkdir()
    (path / "r/trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in trace))
    check_trace(path / "r/trace.jsonl", check(Planted())[1], FACTS, 2, BATCH, found)
    return found


def test_a_trace_of_every_row_once_a_pass_is_in_order(tmp_path: Path) -> None:
    found = trace_of(tmp_path, lines(check(Planted())[1], 2))
    assert (found.lost, found.problems) == (0, [])


def skip_a_step(trace: list[dict[str, Any]]) -> None:
    del trace[3]


def repeat_a_step(trace: list[dict[str, Any]]) -> None:
    trace.insert(3, trace[3])


def swap_steps(trace: list[dict[str, Any]]) -> None:
    trace[3]["orders"], trace[4]["orders"] = trace[4]["orders"], trace[3]["orders"]
    trace[3]["samples"], trace[4]["samples"] = trace[4]["samples"], trace[3]["samples"]


def end_early(trace: list[dict[str, Any]]) -> None:
    del trace[-1]


def learn_from_another_sample(trace: list[dict[str, Any]]) -> None:
    trace[2]["samples"][1] = 99


@pytest.mark.parametrize("plant", [skip_a_step, repeat_a_step, swap_steps, end_early, learn_from_another_sample])
def test_what_is_planted_in_a_trace_is_found(tmp_path: Path, plant: Callable[[list[dict[str, Any]]], None]) -> None:
    trace = lines(check(Planted())[1], 2)
    plant(trace)
    assert trace_of(tmp_path, trace).problems
