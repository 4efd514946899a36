"""The report of a run: its text, and the commits of the reporter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kafka import TopicPartition
from reader_logs import Logs, logs_of, make_stream

from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.log import Admin, Commit
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import run_group, soft_targets_topic
from pipeline.reports import read_report
from schemas.commits import RUN_STATES, LeaseNote, RunReport, decode_next_sequence, encode_next_sequence
from schemas.errors import RunLocked
from student_trainer.reporter import RunReporter
from student_trainer.sources.base import Cursor

NUMBERS = st.integers(0, 2**62)
NAMES = st.text(max_size=40).filter(str.isprintable)
POSITIONS = st.builds(
    RunReport,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.floats(0, 2.0**62),
    NAMES,
    NAMES,
    st.sampled_from(RUN_STATES),
    st.none() | NUMBERS,
)


@given(POSITIONS)
def test_a_position_survives_its_text(position: RunReport) -> None:
    assert RunReport.decode(position.encode()) == position


# What Python's JSON takes for a number, however long, and names that no terminal can show.
HUGE = st.sampled_from([2**63, -(2**63) - 1, 10**400, -(10**400), 1e308, -1e308, 2.0**63])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | HUGE
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", "\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = ["version", "pass", "sequence", "checkpointed", "time", "run_id", "host", "state"]


@given(POSITIONS, JSON)
@example(RunReport(0, 1, 0, 1.0, "id", "host", "training", 3), None)
@example(RunReport(0, 1, 0, 1.0, "id", "host", "training", 3), True)
@example(RunReport(0, 1, 0, 1.0, "id", "host", "training", 3), 2**63)
def test_a_position_with_any_other_number_of_passes_says_none(position: RunReport, passes: Any) -> None:
    decoded = RunReport.decode(json.dumps(json.loads(position.encode()) | {"passes": passes}))
    known = type(passes) is int and 0 <= passes < 2**63
    assert decoded == replace(position, passes=passes if known else None)


@given(POSITIONS, st.sampled_from(KEYS), JSON)
@example(RunReport(0, 1, 0, 1.0, "id", "host", "training"), "time", 10**400)
@example(RunReport(0, 1, 0, 1.0, "id", "host", "training"), "sequence", 2**63)
@example(RunReport(0, 1, 0, 1.0, "id", "host", "training"), "pass", True)
@example(RunReport(0, 1, 0, 1.0, "id", "host", "training"), "host", "\ud800")
@example(RunReport(0, 1, 0, 1.0, "id", "host", "training"), "version", True)
def test_any_other_text_is_no_position(position: RunReport, key: str, value: Any) -> None:
    values = json.loads(position.encode())
    values[key] = value
    decoded = RunReport.decode(json.dumps(values))
    if decoded is not None:  # then it is one that a run could have written, and that can be shown
        assert RunReport.decode(decoded.encode()) == decoded
        assert max(decoded.pass_number, decoded.sequence, decoded.checkpointed, decoded.time) < 2**63
        assert f"{decoded.run_id}{decoded.host}".isprintable()
        assert key != "version" or value is not True
    del values[key]
    assert key == "version" or RunReport.decode(json.dumps(values)) is None


@given(st.integers(0, 2**62), st.integers(1, 256), st.integers(0, 100))
def test_a_next_sequence_survives_its_text(sequence: int, partitions: int, repetitions: int) -> None:
    partition, orders = sequence % partitions, sequence // partitions
    text = encode_next_sequence(sequence)
    assert decode_next_sequence(text, partition, partitions, orders + repetitions) == sequence
    assert decode_next_sequence(text, (partition + 1) % (partitions + 1), partitions + 1, 2**62) in (None, sequence)
    assert orders == 0 or decode_next_sequence(text, partition, partitions, orders - 1) is None


@given(st.builds(LeaseNote, NAMES, st.none() | NUMBERS, NUMBERS), NUMBERS)
def test_a_lease_note_survives_its_text_and_leaves_the_sequence_as_it_is(note: LeaseNote, sequence: int) -> None:
    text = encode_next_sequence(sequence, note)
    assert LeaseNote.decode(text) == note
    assert decode_next_sequence(text, 0, 1, 2**63) == sequence


def test_a_commit_without_a_note_is_written_as_it_was_before_there_were_any() -> None:
    assert encode_next_sequence(7) == '{"version":1,"next_sequence":7}'
    assert LeaseNote.decode('{"version":1,"next_sequence":7}') == LeaseNote.decode(None) == LeaseNote()


@given(JSON, JSON, JSON)
@example("a\nb", True, -1)
def test_any_other_values_are_no_lease_note(holder: Any, probation: Any, attempts: Any) -> None:
    text = json.dumps({"next_sequence": 0, "holder": holder, "probation": probation, "attempts": attempts})
    note = LeaseNote.decode(text)
    assert note.holder in ("", holder)
    assert note.probation is None or (type(note.probation) is int and note.probation == probation)
    assert note.attempts == (attempts if type(attempts) is int and 0 <= attempts < 2**63 else 0)
    assert LeaseNote.decode(encode_next_sequence(0, note)) == note


@given(JSON)
@example(2**63)
@example(True)
@example(1.0)
def test_any_other_value_is_no_next_sequence(value: Any) -> None:
    decoded = decode_next_sequence(json.dumps({"version": 1, "next_sequence": value}), 0, 1, 2**63)
    assert decoded is None or (decoded == value and type(value) is int and 0 <= value < 2**63)


@given(st.text() | JSON.map(json.dumps))
@example("[" * 100_000)
@example('{"time":' * 100_000)
@example('{"next_sequence":1' + "0" * 5000 + "}")
@example('{"next_sequence":1e999}')
def test_text_of_others_is_neither_position_nor_sequence(text: str) -> None:
    assert RunReport.decode(text) is None
    assert decode_next_sequence(text, 0, 1, 2**63) is None


@pytest.fixture
def logs(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]) -> Iterator[Logs]:
    with logs_of(kafka_settings, make_stream(fresh_name("stream"), ("cnn", "vit"))) as made:
        yield made


@pytest.fixture
def reports(kafka_settings: KafkaSettings) -> Iterator[Admin]:
    made = KafkaCluster(kafka_settings).admin()
    yield made
    made.close()


def start(logs: Logs, **more: Any) -> RunReporter:
    return RunReporter(KafkaCluster(logs.settings), logs.stream, "mlp", ("cnn", "vit"), **more)


@pytest.mark.kafka
def test_a_run_reports_every_second_where_it_stands(logs: Logs, reports: Admin, eventually: Any) -> None:
    manifest = logs.stream.manifest

    def position() -> RunReport | None:
        return read_report(reports, manifest, "mlp")

    assert position() is None
    with start(logs) as reporter:
        assert position() is None  # nothing is known yet, and 0 would be a lie for a resumed run
        reporter.trained(Cursor(0, 7, 2))
        first = eventually(position)
        assert (first.sequence, first.checkpointed, first.state, first.run_id) == (7, 0, "training", reporter.run_id)
        reporter.checkpointed(Cursor(1, 8, 0))
        reporter.state("evaluating")
        second = eventually(lambda: (p := position()) and p.state == "evaluating" and p)
        assert (second.pass_number, second.sequence, second.checkpointed) == (1, 8, 8)
        third = eventually(lambda: (p := position()) and p.time > second.time and p)  # though nothing happened
        assert replace(third, time=second.time) == second
        group = run_group(manifest, "mlp")
        committed = reports.committed({group: None})[group]
        for teacher in ("cnn", "vit"):  # orders 0 to 7 over three partitions
            topic = soft_targets_topic(manifest.stream, teacher)
            assert tuple(committed[TopicPartition(topic, number)].offset for number in range(3)) == (3, 3, 2)
        reporter.state("done")
    last = position()
    assert last is not None
    assert (last.state, last.over) == ("done", True)


@pytest.mark.kafka
def test_a_run_that_starves_says_so(logs: Logs, reports: Admin, eventually: Any) -> None:
    with start(logs, starving=lambda: True) as reporter:
        reporter.trained(Cursor.start())
        eventually(lambda: (p := read_report(reports, logs.stream.manifest, "mlp")) and p.state == "starving")


@pytest.mark.kafka
def test_an_error_makes_the_last_report_failed(logs: Logs, reports: Admin) -> None:
    def train() -> None:
        with start(logs) as reporter:
            reporter.trained(Cursor.start())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    last = read_report(reports, logs.stream.manifest, "mlp")
    assert last is not None
    assert last.state == "failed"


@pytest.mark.kafka
@pytest.mark.parametrize("state", ["starved", "stopped"])
def test_an_end_that_the_run_told_is_what_it_reports_last(logs: Logs, reports: Admin, state: str) -> None:
    def train() -> None:
        with start(logs) as reporter:
            reporter.trained(Cursor.start())
            reporter.state(state)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    last = read_report(reports, logs.stream.manifest, "mlp")
    assert last is not None
    assert last.state == state


@pytest.mark.kafka
def test_a_silent_run_is_taken_over(logs: Logs, reports: Admin, eventually: Any) -> None:
    for run_id in ("first", "second"):
        reporter = start(logs, run_id=run_id)
        reporter.trained(Cursor.start())
        eventually(lambda: (p := read_report(reports, logs.stream.manifest, "mlp")) and p.run_id == run_id)  # noqa: B023
        eventually(lambda: (p := read_report(reports, logs.stream.manifest, "mlp")) and p.time)
        reporter.close()
        assert reporter.error is None


@pytest.mark.kafka
def test_two_run_ids_in_one_group_make_both_stop(logs: Logs, eventually: Any) -> None:
    cursor = Cursor.start()
    with start(logs) as first, start(logs) as second:
        first.trained(cursor)
        second.trained(cursor)
        eventually(lambda: first.error and second.error)
        for reporter in (first, second):
            with pytest.raises(RunLocked, match=r"run 'mlp' .* both stop"):
                reporter.trained(cursor)


@pytest.mark.kafka
def test_a_report_written_over_the_failure_is_answered(logs: Logs, reports: Admin, eventually: Any) -> None:
    other = RunReport(0, 1, 0, 1.0, "the other", "elsewhere", "training")
    group, place = (
        run_group(logs.stream.manifest, "mlp"),
        TopicPartition(soft_targets_topic(logs.stream.manifest.stream, "cnn"), 0),
    )

    def write() -> None:
        reports.commit(group, {place: Commit(1, other.encode())})

    def state_of_mine() -> str | None:
        position = read_report(reports, logs.stream.manifest, "mlp")
        return position.state if position and position.run_id == "mine" else None

    with start(logs, run_id="mine") as reporter:
        reporter.trained(Cursor.start())
        eventually(lambda: state_of_mine() == "training")
        for _ in range(2):  # the second time as by a process that had looked before the failure was written
            write()
            eventually(lambda: state_of_mine() == "failed")
        assert reporter.error
