from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.structs import OffsetAndMetadata
from small_streams import small_stream

from pipeline.feed import Fed, feed
from pipeline.follow import Followers, Lead
from pipeline.kafka.clients import new_admin, new_consumer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.coordinator import ask_coordinator
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import run_group, work_orders_topic
from pipeline.streams import Stream
from schemas.commits import RunReport
from schemas.errors import BrokerUnavailable, StreamNotFound

Name = Callable[[str], str]
START = RunReport(0, 0, 0, 1.0, "a1", "here", "training")


def at(sequence: int, state: str = "training") -> RunReport:
    return replace(START, sequence=sequence, time=float(sequence), state=state)


def followers(
    positions: dict[str, RunReport | None], said: list[str], pace: str = "fastest", **timeouts: float
) -> Followers:
    limits = {"follow_timeout": 60.0, "appear_timeout": 60.0, **timeouts}
    return Followers(tuple(positions), Lead(2, 4), pace, 100, positions.get, say=said.append, refresh=0.0, **limits)


def test_orders_are_allowed_up_to_high_and_again_below_low() -> None:
    positions: dict[str, RunReport | None] = {"run": at(10)}
    credit = followers(positions, [])
    assert [credit.allow(s) for s in (10, 11, 12, 13, 14)] == [True, True, True, True, False]
    positions["run"] = at(11)
    assert not credit.allow(14)
    positions["run"] = at(13)
    assert credit.allow(14)


def test_the_fastest_run_gives_the_credit() -> None:
    credit = followers({"slow": at(1), "fast": at(50), "absent": None}, [])
    assert credit.allow(53)
    assert not credit.allow(54)


def test_the_slowest_run_gives_the_credit_where_that_is_asked_for() -> None:
    positions: dict[str, RunReport | None] = {"slow": at(1), "fast": at(50)}
    credit = followers(positions, [], "slowest")
    assert credit.allow(4)
    assert not credit.allow(5)
    positions["slow"] = replace(at(0), pass_number=1)  # it is over the stream; now the other one is behind
    assert [credit.allow(sequence) for sequence in (51, 53, 54)] == [True, True, False]


def test_of_the_slowest_a_run_that_has_not_reported_yet_is_waited_for() -> None:
    positions: dict[str, RunReport | None] = {"here": at(50), "late": None}
    credit = followers(positions, [], "slowest")
    assert credit.allow(3)
    assert not credit.allow(4)
    positions["late"] = at(49)
    assert [credit.allow(sequence) for sequence in (50, 52, 53)] == [True, True, False]


def test_a_run_in_its_second_pass_is_past_the_stream() -> None:
    assert followers({"run": replace(at(3), pass_number=1)}, []).allow(99)


def test_a_lead_that_does_not_last_for_a_workers_death_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.follow.PACE_AFTER", 0.0)
    positions: dict[str, RunReport | None] = {"run": at(0)}
    credit = followers(positions, [])
    for sequence in (50, 90, 95):
        credit.allow(sequence)
        positions["run"] = at(sequence)
    credit.allow(96)
    assert [record.getMessage().partition(" orders lasts")[0] for record in caplog.records] == ["a lead of 2"]


def test_a_run_that_is_done_leaves() -> None:
    said: list[str] = []
    positions: dict[str, RunReport | None] = {"one": at(3), "two": at(1)}
    credit = followers(positions, said)
    assert credit.allow(4)
    positions["one"] = at(90, "done")
    assert credit.allow(4)
    assert credit.position == 1
    positions["two"] = at(90, "done")
    assert not credit.allow(4)
    assert (credit.gone, said) == ("run two is done", ["run one is done", "run two is done"])


def test_a_run_whose_report_does_not_change_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    credit = followers({"run": at(3)}, [], follow_timeout=0.0)
    assert not credit.allow(4)
    assert credit.gone == "run run did not report for 0 s, at order 3"
    assert caplog.messages == ["run run did not report for 0 s, at order 3: following it no longer"]


def test_no_run_is_called_silent_for_the_time_in_which_the_cluster_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.follow.LOOKED_AWAY", 0.1)
    positions: dict[str, RunReport | None] = {"run": at(3), "late": None}
    credit = followers(positions, [], follow_timeout=0.3, appear_timeout=0.3)
    assert credit.allow(4)

    def unanswered(run: str) -> None:
        raise BrokerUnavailable("away")

    monkeypatch.setattr(credit, "_read", unanswered)
    time.sleep(0.4)
    with pytest.raises(BrokerUnavailable):
        credit.allow(4)
    monkeypatch.setattr(credit, "_read", positions.get)
    assert credit.allow(4)  # neither of them had a chance to report yet
    time.sleep(0.05)
    positions["run"] = at(5)
    assert credit.allow(8)
    assert not credit.gone


def test_a_run_is_called_silent_also_where_all_looks_are_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.follow.LOOKED_AWAY", 0.02)
    credit = followers({"run": at(3)}, [], follow_timeout=0.1)
    looks = 0
    while credit.allow(4):
        time.sleep(0.04)
        looks += 1
        assert looks < 20
    assert looks >= 4
    assert "run run did not report for" in credit.gone


def test_a_run_is_given_the_time_in_which_nobody_could_look_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often another run's group could not be asked meanwhile."""
    monkeypatch.setattr("pipeline.follow.LOOKED_AWAY", 0.02)
    credit = followers({"dead": at(3), "other": at(3)}, [], follow_timeout=0.1)
    assert credit.allow(4)

    def away(run: str) -> RunReport:
        if run == "other":
            raise BrokerUnavailable("its coordinator is away")
        return at(3)

    monkeypatch.setattr(credit, "_read", away)
    looks = 0
    while "dead" not in credit.gone and "dead" in credit._runs:
        time.sleep(0.03)
        with pytest.raises(BrokerUnavailable):
            credit.allow(4)
        looks += 1
        assert looks < 30
    assert looks >= 4


def test_a_run_that_never_appears_ends_the_wait() -> None:
    with pytest.raises(StreamNotFound, match=r"none of the runs to follow \(run\) reported within 0 s"):
        followers({"run": None}, [], appear_timeout=0.0).allow(0)


def test_a_run_that_does_not_exist_yet_is_waited_for_and_announced() -> None:
    said: list[str] = []
    positions: dict[str, RunReport | None] = {"run": None}
    credit = followers(positions, said)
    assert credit.allow(3)
    assert not credit.allow(4)
    positions["run"] = at(3)
    assert credit.allow(4)
    assert said == ["run run has not reported yet: waiting for it up to 60 s", "run run is here, at order 3"]


class FakeRun:
    """Reports positions as a run does: by commits to a group without members."""

    def __init__(self, settings: KafkaSettings, stream: Stream, name: str) -> None:
        self._group = run_group(stream.manifest, name)
        self._partition = TopicPartition(work_orders_topic(stream.manifest.stream), 0)
        self._admin: KafkaAdminClient = new_admin(settings)

    def report(self, position: RunReport) -> None:
        commit = OffsetAndMetadata(0, position.encode(), -1)
        ask_coordinator(lambda: self._admin.alter_group_offsets(self._group, {self._partition: commit}))

    def close(self) -> None:
        self._admin.close()


@pytest.fixture
def stream(kafka_settings: KafkaSettings, fresh_name: Name) -> Stream:
    return small_stream(kafka_settings, fresh_name("follow"), epochs=10)  # 200 orders


@pytest.fixture
def run(kafka_settings: KafkaSettings, stream: Stream) -> Iterator[FakeRun]:
    fake = FakeRun(kafka_settings, stream, "run")
    yield fake
    fake.close()


class Feeding:
    """A feeder that follows the run, in a thread."""

    def __init__(self, settings: KafkaSettings, stream: Stream) -> None:
        self._settings, self._stream = settings, stream
        self.stop = threading.Event()
        self.fed: list[Fed] = []
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    def _feed(self) -> None:
        self.fed.append(feed(KafkaCluster(self._settings), self._stream, ("run",), (8, 16), stop=self.stop))

    def published(self) -> int:
        topic = work_orders_topic(self._stream.manifest.stream)
        consumer = new_consumer(self._settings, group_id=None)
        try:
            partitions = [TopicPartition(topic, p) for p in range(self._stream.manifest.partitions)]
            return sum(consumer.end_offsets(partitions).values())
        finally:
            consumer.close()

    def join(self) -> Fed:
        self._thread.join(30)
        return self.fed[0]


@pytest.mark.kafka
def test_the_topic_never_runs_more_than_high_ahead_of_the_run(
    kafka_settings: KafkaSettings, stream: Stream, run: FakeRun, eventually: Callable[..., object]
) -> None:
    feeding = Feeding(kafka_settings, stream)
    try:
        eventually(lambda: feeding.published() == 16, 20.0, "the first 16 orders")
        run.report(at(8))  # 8 lie ready: not below LOW
        run.report(at(9))
        eventually(lambda: feeding.published() == 25, 20.0, "orders up to 16 ahead of 9")
        run.report(at(150))
        eventually(lambda: feeding.published() == 166, 20.0, "orders up to 16 ahead of 150")
        run.report(at(160, "done"))
        assert feeding.join().why == "nobody is left to follow: run run is done"
        assert feeding.published() == 166
    finally:
        feeding.stop.set()
        feeding.join()


@pytest.mark.kafka
def test_the_feeder_ends_when_all_is_fed_though_the_run_goes_on(
    kafka_settings: KafkaSettings, stream: Stream, run: FakeRun
) -> None:
    run.report(at(190))
    assert Feeding(kafka_settings, stream).join().why == "all orders are fed"
