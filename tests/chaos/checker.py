"""Looks for what a soak may have lost, in the manner of Jepsen's Kafka workload: by the logs, and by the runs' traces.

Shares no code with what it checks: a plain consumer, fastavro on the published schemas, and the rule, written anew: of
each partition's records the one that is expected next counts, any other is a repetition or early.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
from fastavro.schema import fingerprint, to_parsing_canonical_form
from kafka import KafkaConsumer, TopicPartition

AVSC = Path(__file__).parents[2] / "schemas" / "avsc"
SCHEMAS = {
    bytes.fromhex(fingerprint(to_parsing_canonical_form(each), "CRC-64-AVRO")): fastavro.parse_schema(each)
    for each in (json.loads(path.read_text()) for path in sorted(AVSC.glob("*.avsc")))
}
"""Fingerprint -> schema."""
READ = 300.0
"""Seconds for a topic to be read."""
SHOWN = 20
"""Problems that are written out; the others are counted."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What whoever made the stream knows of it."""

    stream: str
    teacher: str
    num_samples: int
    order_size: int
    epochs: int
    partitions: int
    broken: frozenset[int]
    """Samples that no teacher can label."""

    @property
    def orders_per_epoch(self) -> int:
        return -(-self.num_samples // self.order_size)

    @property
    def num_orders(self) -> int:
        return self.orders_per_epoch * self.epochs


@dataclass(slots=True)
class Checked:
    """What was found."""

    lost: int = 0
    """Sequences, of each pass of each run, that were not learned from, and those that no reader gets from a log."""
    duplicates: int = 0
    """Records of the logs that repeat one."""
    early: int = 0
    """Records of the logs that stand before the one expected; they came again."""
    dead_letters: int = 0
    repeated_letters: int = 0
    problems: list[str] = field(default_factory=list)
    """Whatever else is not as it is to be."""
    num_problems: int = 0

    def problem(self, text: str) -> None:
        self.num_problems += 1
        if len(self.problems) < SHOWN:
            self.problems.append(text)

    def check(self, holds: bool, text: str) -> None:
        if not holds:
            self.problem(text)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One record of a log."""

    offset: int
    datum: dict[str, Any]
    raw: bytes


def decode(raw: bytes) -> dict[str, Any]:
    """Read a record of any of the published schemas."""
    assert raw[:2] == b"\xc3\x01", raw[:10]
    datum = fastavro.schemaless_reader(io.BytesIO(raw[10:]), SCHEMAS[raw[2:10]], None)
    assert isinstance(datum, dict)
    return datum


class Logs:
    """All topics of a stream, read to the end."""

    def __init__(self, servers: str, facts: Facts) -> None:
        self._servers = servers.split(",")
        self.orders = self._read(f"{facts.stream}.work-orders")
        self.labels = self._read(f"{facts.stream}.soft-targets.{facts.teacher}")
        self.letters = self._read(f"{facts.stream}.dead-letters")

    def _read(self, topic: str) -> dict[int, list[Row]]:
        consumer = KafkaConsumer(
            bootstrap_servers=self._servers, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        try:
            partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
            consumer.assign(partitions)
            ends = consumer.end_offsets(partitions)
            consumer.seek_to_beginning(*partitions)
            found: dict[int, list[Row]] = {each.partition: [] for each in partitions}
            for _ in range(int(READ)):
                if all(consumer.position(each) >= ends[each] for each in partitions):
                    return found
                for at, records in consumer.poll(timeout_ms=1000, max_records=5000).items():
                    found[at.partition] += [Row(each.offset, decode(each.value), each.value) for each in records]
        finally:
            consumer.close()
        raise AssertionError(f"{topic} could not be read to its end in {READ:g} s")


def values(column: dict[str, Any]) -> list[int]:
    """The whole numbers of a column."""
    return [int(each) for each in np.frombuffer(column["data"], np.dtype(column["dtype"]).newbyteorder("<"))]


def check_logs(logs: Logs, facts: Facts, found: Checked) -> dict[int, list[int]]:
    """Check the three topics; return sequence -> the samples that were labelled, in their order."""
    orders = _accept(logs.orders, facts, "work-orders", found)
    labels = _accept(logs.labels, facts, f"soft-targets.{facts.teacher}", found)
    samples = {number: values(row.datum["sample_ids"]) for number, row in orders.items()}
    for epoch in range(facts.epochs):
        numbers = range(epoch * facts.orders_per_epoch, (epoch + 1) * facts.orders_per_epoch)
        got = sorted(sample for number in numbers for sample in samples.get(number, ()))
        found.check(got == list(range(facts.num_samples)), f"epoch {epoch} does not hold each sample once")
    kept: dict[int, list[int]] = {}
    left_out: set[tuple[int, int]] = set()
    for number, row in labels.items():
        ids = values(row.datum["sample_ids"])
        found.check(ids == samples.get(number), f"order {number}: its label is of other samples")
        rows = row.datum["kept_rows"]
        rows = list(range(len(ids))) if rows is None else values(rows)
        kept[number] = [ids[each] for each in rows]
        dropped = set(range(len(ids))) - set(rows)
        left_out |= {(number, each) for each in dropped}
        expected = {place for place, sample in enumerate(ids) if sample in facts.broken}
        found.check(dropped == expected, f"order {number}: rows {sorted(dropped)} are left out, not {sorted(expected)}")
        (output,) = row.datum["outputs"]
        found.check(
            all(column["shape"][0] == len(rows) for column in output["columns"]), f"order {number}: its rows are short"
        )
    _check_letters(logs, facts, samples, left_out, found)
    return kept


def _accept(log: dict[int, list[Row]], facts: Facts, name: str, found: Checked) -> dict[int, Row]:
    """The reader's rule; counts what is lost, repeated and early."""
    accepted: dict[int, Row] = {}
    ids = Counter(row.datum["stream_id"] for rows in log.values() for row in rows)
    found.check(len(ids) <= 1, f"{name}: records of {len(ids)} streams")
    for partition, rows in log.items():
        expected = partition
        for row in rows:
            number = row.datum["sequence"]
            found.check(number % facts.partitions == partition, f"{name}/{partition}@{row.offset}: order {number}")
            if number == expected:
                accepted[number] = row
                expected += facts.partitions
            elif number < expected:
                found.duplicates += 1
                same = number in accepted and accepted[number].raw == row.raw
                found.check(same, f"{name}/{partition}@{row.offset}: order {number} again, and not the same")
            else:
                found.early += 1
    missing = set(range(facts.num_orders)) - accepted.keys()
    found.lost += len(missing)
    found.check(not missing, f"{name}: {len(missing)} orders are lost, first {sorted(missing)[:10]}")
    found.check(
        accepted.keys() <= set(range(facts.num_orders)), f"{name}: there are more than {facts.num_orders} orders"
    )
    return accepted


def _check_letters(
    logs: Logs, facts: Facts, samples: dict[int, list[int]], left_out: set[tuple[int, int]], found: Checked
) -> None:
    """Each letter is of a broken sample's row, and of the record that it names; each row left out has one."""
    where = {
        (partition, row.offset): row.datum["sequence"] for partition in logs.orders for row in logs.orders[partition]
    }
    there: Counter[tuple[int, int]] = Counter()
    for row in logs.letters[0]:
        letter = row.datum
        number, place, sample = letter["sequence"], letter["row"], letter["sample_id"]
        name = f"dead letter {row.offset} (order {number}, row {place}, sample {sample}: {letter['reason']})"
        if number is None or place is None:
            found.problem(f"{name}: nothing but orders was published")
            continue
        there[number, place] += 1
        found.check(sample in facts.broken, f"{name}: that sample is not broken")
        found.check(samples.get(number, [])[place : place + 1] == [sample], f"{name}: that is not in that row")
        found.check(letter["topic"] == f"{facts.stream}.work-orders", f"{name}: is of topic {letter['topic']}")
        found.check(where.get((letter["partition"], letter["offset"])) == number, f"{name}: its address is another's")
    found.dead_letters = len(there)
    found.repeated_letters = sum(there.values()) - len(there)
    for each in sorted(left_out - there.keys()):
        found.problem(f"order {each[0]}: row {each[1]} was left out without a dead letter")
    for each in sorted(there.keys() - left_out):
        found.problem(f"order {each[0]}: row {each[1]} has a dead letter, and a label")


def check_trace(path: Path, kept: dict[int, list[int]], facts: Facts, passes: int, batch: int, found: Checked) -> None:
    """Check that a run learned from every row that was labelled, once a pass, in order; fewer than a batch are left."""
    name = path.parent.name
    expected = [
        (number_of_pass, number, row, sample)
        for number_of_pass in range(passes)
        for number in range(facts.num_orders)
        for row, sample in enumerate(kept.get(number, ()))
    ]
    expected = expected[: len(expected) - len(expected) % batch]
    got: list[tuple[int, int, int, int]] = []
    for place, text in enumerate(path.read_text().splitlines()):
        line = json.loads(text)
        found.check(line["step"] == place + 1, f"run {name}: line {place + 1} of its trace is of step {line['step']}")
        rows = [
            (number_of_pass, number, row + each)
            for number_of_pass, number, row, count in line["orders"]
            for each in range(count)
        ]
        found.check(len(rows) == len(line["samples"]) == batch, f"run {name}: step {line['step']} has {len(rows)} rows")
        got += [(*row, sample) for row, sample in zip(rows, line["samples"], strict=False)]
    if got == expected:
        return
    missing = {row[:2] for row in set(expected) - set(got)}
    found.lost += len(missing)
    twice = [row for row, count in Counter(got).items() if count > 1]
    first = next((each for each in zip(expected, got, strict=False) if each[0] != each[1]), "one is longer")
    found.problem(
        f"run {name} did not learn from what it was to: {len(missing)} orders are missing, {len(twice)} rows came "
        f"twice, {len(set(got) - set(expected))} are of nowhere; it begins with (expected, got) {first}"
    )


def same_weights(one: Path, other: Path) -> bool:
    """Whether the newest checkpoints of two runs hold the same student, bit for bit."""
    import torch

    states = []
    for run in (one, other):
        place = max((run / "checkpoints").glob("step-*"), key=lambda each: int(each.name[5:]))
        states.append(torch.load(place / "state.pt", map_location="cpu", weights_only=True)["model"])
    mine, its = states
    return mine.keys() == its.keys() and all(
        mine[name].dtype == its[name].dtype
        and mine[name].shape == its[name].shape
        and mine[name].numpy().tobytes() == its[name].numpy().tobytes()
        for name in mine
    )
