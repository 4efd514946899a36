"""Each right of each role, taken away: what is said names it, at once."""

from __future__ import annotations

import json
import logging
import re
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata
from support.generations import generation, publisher
from support.heads import layer
from support.models import classifier
from support.secured_broker import SecuredBroker
from support.streams import publish, stream_with_teacher

from pipeline.cli import main
from pipeline.create import add_teacher
from pipeline.feed import feed
from pipeline.generations import claim_teacher, publish_generation
from pipeline.heads import publish_heads, read_heads
from pipeline.kafka.clients import admin_client, new_producer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.coordinator import ask_coordinator, describe_groups
from pipeline.kafka.settings import KafkaSettings
from pipeline.letters import list_letters
from pipeline.names import dead_letters_topic, manifest_topic, run_group, soft_targets_topic, teacher_group
from pipeline.progress import Progress
from pipeline.reports import read_report
from pipeline.rewind import rewind
from pipeline.rights import ROLES, Scope, grants
from pipeline.streams import Stream, delete_stream, open_stream
from schemas.codecs import CodecSpec
from schemas.errors import NotAuthorized, StreamNotFound
from student_trainer.reporter import RunReporter
from student_trainer.sources.base import Cursor
from student_trainer.sources.reader import SoftTargetReader
from teacher_service.fleet.readings import Watch
from teacher_service.fleet.supervisor import Fleet, FleetOptions
from teacher_service.leases.starts import find_starts
from teacher_service.serve import TeachOptions, prepare_worker
from teacher_service.worker import WorkerOptions

pytestmark = pytest.mark.kafka

AT_ONCE = 10.0
"""seconds in which a missing right must have been told; the client's own time-outs are longer"""


def resource(kind: str, name: str, prefixed: bool) -> str:
    return f"{kind}:{name}{'*' * prefixed}"


class Place:
    """A stream whose first four orders are fed, with teacher "t", run "r", and a user of each role's least rights."""

    def __init__(self, broker: SecuredBroker, folder: Path) -> None:
        self.broker = broker
        self.name = f"sec-{secrets.token_hex(3)}"
        self.model = classifier(folder / "m.onnx")
        self.stream = stream_with_teacher(broker.anybody, self.name, self.model)
        self.scope = Scope(self.name, "t", "r", self.stream.manifest.stream_id)
        head, teacher = layer(10, 4), self.stream.teachers["t"]
        (one,) = teacher.outputs
        by_head = replace(one, kind="logits", codec=CodecSpec("head", 4), head_sha256=head.sha256)
        self.with_head = replace(teacher, outputs=(by_head,))
        """The same teacher, as if its labels were hidden rows."""
        publish_heads(broker.anybody, self.stream.manifest, self.with_head, [head.encode()])
        publish(broker.anybody, self.stream, range(4))
        self._targets(b"nobody of ours wrote this")
        for role in ROLES:
            broker.add_user(self.user(role))
            for grant in grants(role, self.scope):
                for operation in grant.operations:
                    broker.allow(self.user(role), operation, resource(grant.kind, grant.name, grant.prefixed))

    def _targets(self, value: bytes) -> None:
        with closing(new_producer(self.broker.anybody)) as producer:
            topic = soft_targets_topic(self.name, "t")
            producer.send(topic, value=value, partition=0).get(timeout=30)

    def has_workers(self) -> bool:
        """Whether teacher "t" has members in its group; one that ended without a word counts until its session ends."""
        group = teacher_group(self.stream.manifest, "t")
        with admin_client(self.broker.anybody) as admin:
            return bool(ask_coordinator(lambda: describe_groups(admin, [group]))[group]["members"])

    def user(self, role: str) -> str:
        return f"{role}-of-{self.name}"

    def settings(self, role: str) -> KafkaSettings:
        return self.broker.login(self.user(role), "OPEN")

    def cluster(self, role: str) -> KafkaCluster:
        return KafkaCluster(self.settings(role))

    @contextmanager
    def without(self, role: str, operation: str, what: str) -> Iterator[None]:
        self.broker.take_away(self.user(role), operation, what)
        try:
            yield
        finally:
            self.broker.allow(self.user(role), operation, what)


@pytest.fixture(scope="module")
def place(secured_broker: SecuredBroker, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(secured_broker, tmp_path_factory.mktemp("place"))


def opens(place: Place, role: str) -> None:
    open_stream(place.settings(role), place.name)


def adds_a_teacher(place: Place, role: str) -> None:
    teacher = replace(place.stream.teachers["t"], name=f"u-{secrets.token_hex(2)}")
    add_teacher(place.settings(role), place.stream, teacher)


def rewinds(place: Place, role: str) -> None:
    rewind(place.settings(role), place.stream, "t", 0)


def deletes(place: Place, role: str) -> None:
    delete_stream(place.settings(role), place.name)


def deletes_with_a_group(place: Place, role: str) -> None:
    """Another stream's topics are deleted before its group is not, so this one takes one of its own."""
    other = Place(place.broker, place.model.parent)
    with admin_client(other.broker.anybody) as admin:
        group, at = run_group(other.stream.manifest, "r"), TopicPartition(soft_targets_topic(other.name, "t"), 0)
        ask_coordinator(lambda: admin.alter_group_offsets(group, {at: OffsetAndMetadata(0, "", -1)}))
    with other.without(role, "DELETE", f"group:distillog.{other.name}.*"):
        deletes(other, role)


def feeds(place: Place, role: str) -> None:
    feed(place.cluster(role), place.stream)


def feeds_a_run(place: Place, role: str) -> None:
    feed(place.cluster(role), place.stream, follow=("r",), appear_timeout=1.0)


def labels(place: Place, role: str) -> None:
    options = TeachOptions(threads=1, worker=WorkerOptions(until_idle=True))
    prepare_worker(place.settings(role), place.name, place.model, options).run()


def supervises(place: Place, role: str) -> None:
    Fleet(place.settings(role), place.name, place.model, FleetOptions(most=1, run="r"), Progress(quiet=True), print)


def looks_where_labels_end(place: Place, role: str) -> None:
    find_starts(place.cluster(role), place.stream.manifest, soft_targets_topic(place.name, "t"), {0: None}, {})


def reads_labels(place: Place, role: str) -> None:
    with closing(SoftTargetReader(place.cluster(role), place.stream, ["t"])) as reader:
        reader.seek(0, ())
        reader.next(0)


def reads_a_last_layer(place: Place, role: str) -> None:
    read_heads(place.cluster(role), place.stream.manifest, place.with_head)


def publishes(place: Place, role: str) -> None:
    claim_teacher(place.settings(role), place.stream, publisher(place.stream, "t"))


TRIED: dict[tuple[str, str, str], Callable[[Place, str], None]] = {
    ("administrator", "CREATE", "topic"): adds_a_teacher,
    ("administrator", "READ", "topic"): opens,
    ("administrator", "WRITE", "topic"): adds_a_teacher,
    ("administrator", "DELETE", "topic"): deletes,
    ("administrator", "DESCRIBE_CONFIGS", "topic"): adds_a_teacher,
    ("administrator", "READ", "group"): rewinds,
    ("feeder", "READ", "manifest"): opens,
    ("feeder", "READ", "work-orders"): feeds,
    ("feeder", "WRITE", "work-orders"): feeds,
    ("feeder", "DESCRIBE", "soft-targets"): feeds_a_run,
    ("feeder", "DESCRIBE", "run"): feeds_a_run,
    ("teacher", "READ", "manifest"): opens,
    ("teacher", "READ", "work-orders"): labels,
    ("teacher", "READ", "soft-targets"): looks_where_labels_end,
    ("teacher", "WRITE", "soft-targets"): labels,
    ("teacher", "WRITE", "dead-letters"): labels,
    ("teacher", "READ", "teacher"): labels,
    ("teacher", "DESCRIBE", "run"): supervises,
    ("student", "READ", "manifest"): opens,
    ("student", "READ", "soft-targets"): reads_labels,
    ("student", "READ", "heads"): reads_a_last_layer,
    ("publisher", "READ", "manifest"): opens,
    ("publisher", "WRITE", "manifest"): publishes,
    ("publisher", "READ", "soft-targets"): reads_labels,
    ("publisher", "READ", "heads"): reads_a_last_layer,
}
"""(role, operation, which topic or group) -> what ends without that right"""

WARNED = {
    (role, operation, what)
    for role in ("student", "publisher")
    for operation, what in (
        ("READ", "run"),
        ("DESCRIBE", "work-orders"),
        ("DESCRIBE", "dead-letters"),
        ("DESCRIBE", "teacher"),
    )
}
"""those without which the work goes on"""

APART = {("administrator", "DELETE", "group")}
"""has a test of its own"""


def which(kind: str, name: str) -> str:
    """What the tables above call a topic or group of the role table."""
    parts = name.rstrip(".").split(".")
    if kind == "topic":
        return parts[1] if len(parts) > 1 else kind
    return parts[3] if len(parts) > 3 else kind


TABLE = {
    (role, operation, which(grant.kind, grant.name)): grant
    for role in ROLES
    for grant in grants(role, Scope("STREAM", "t", "r", "ID"))
    for operation in grant.operations
}


def test_every_right_of_the_table_is_taken_away_here() -> None:
    assert TABLE.keys() == TRIED.keys() | WARNED | APART


def names(text: str, user: str, operation: str, named: str) -> bool:
    """Whether a text says who may not do what. Who lost the only right of a topic or group cannot even see it any more,
    and that may be found first."""
    return any(f"User:{user} may not {each} {named}" in text for each in (operation, "DESCRIBE"))


def rights(place: Place, role: str, operation: str, which_one: str) -> tuple[str, str]:
    """The resource as the broker knows it, and how its name begins."""
    (grant,) = [each for each in grants(role, place.scope) if which(each.kind, each.name) == which_one]
    return resource(grant.kind, grant.name, grant.prefixed), f"{grant.kind} {grant.name}"


@pytest.mark.parametrize("right", TRIED, ids=" ".join)
def test_what_cannot_be_done_without_a_right_ends_at_once_and_names_it(
    place: Place, right: tuple[str, str, str], eventually: Callable[..., Any]
) -> None:
    role, operation, _ = right
    what, named = rights(place, *right)
    eventually(lambda: not place.has_workers(), what="the end of another test's workers")
    began = time.monotonic()
    with place.without(role, operation, what), pytest.raises(NotAuthorized) as caught:
        TRIED[right](place, role)
    assert time.monotonic() - began < AT_ONCE
    assert names(str(caught.value), place.user(role), operation, named)
    (command,) = re.findall(r"`distillog (topics rights .*?)`", str(caught.value))
    asked = shlex.split(command.replace("ROLE", role))
    assert f"User:{place.user(role)}" in asked
    printed = json.loads(CliRunner().invoke(main, [*asked, "--json"], catch_exceptions=False).stdout)
    assert any(operation in row["operations"] and named.startswith(f"{row['kind']} {row['name']}") for row in printed)


def test_a_group_that_may_not_be_deleted_is_named(place: Place) -> None:
    with pytest.raises(NotAuthorized, match=r"may not DELETE group distillog\.sec-.*\.run\.r at"):
        deletes_with_a_group(place, "administrator")


@pytest.mark.parametrize("right", sorted(WARNED), ids=" ".join)
def test_a_student_says_once_what_it_cannot_do_and_goes_on(
    place: Place, right: tuple[str, str, str], caplog: pytest.LogCaptureFixture, eventually: Callable[..., Any]
) -> None:
    role, operation, _ = right
    what, named = rights(place, *right)
    cluster = place.cluster(role)
    with place.without(role, operation, what), caplog.at_level(logging.WARNING):
        reader = SoftTargetReader(cluster, place.stream, ["t"], stop := threading.Event())
        with closing(reader), RunReporter(cluster, place.stream, "r", ["t"]) as reporter:
            reader.seek(0, ())
            waiting = threading.Thread(target=reader.next, args=[0])
            waiting.start()
            reporter.trained(Cursor.start())
            eventually(lambda: refusals(caplog), what="a warning")
            time.sleep(1.5)  # further looks and reports
            stop.set()
            waiting.join(10.0)
    (text,) = refusals(caplog)
    assert names(text, place.user(role), operation, named)
    assert "the run goes on" in text


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if "may not" in text]


def test_who_publishes_needs_no_more_than_its_rights(place: Place) -> None:
    publishes(place, "publisher")
    publish_generation(place.settings("publisher"), place.stream, generation(place.stream, "t", 1))
    assert open_stream(place.settings("student"), place.name).lineage("t").newest == 1


def test_a_report_is_hidden_from_whom_the_labels_beside_it_are(place: Place, eventually: Callable[..., Any]) -> None:
    """Why a feeder that follows has to see the soft targets: it would take the run for one that never came."""
    what, _ = rights(place, "feeder", "DESCRIBE", "soft-targets")
    with RunReporter(place.cluster("student"), place.stream, "r", ["t"]) as reporter:
        reporter.trained(Cursor.start())
        with closing(place.cluster("feeder").admin()) as admin:
            eventually(lambda: read_report(admin, place.stream.manifest, "r"), what="a report")
            with place.without("feeder", "DESCRIBE", what):
                assert read_report(admin, place.stream.manifest, "r") is None


def test_a_stream_that_may_not_be_seen_is_not_called_missing(place: Place) -> None:
    place.broker.add_user(stranger := f"stranger-of-{place.name}")
    settings = place.broker.login(stranger, "OPEN")
    for name in (place.name, "mistyped"):
        with pytest.raises(NotAuthorized, match=rf"DESCRIBE topic {name}\.manifest, nor learn whether it exists, at"):
            open_stream(settings, name)
        with pytest.raises(NotAuthorized, match=rf"DESCRIBE topic {name}\.manifest"):
            delete_stream(settings, name)
    with pytest.raises(StreamNotFound, match="no stream 'mistyped'"):
        open_stream(place.broker.anybody, "mistyped")


def test_a_producer_that_may_write_nowhere_names_what_it_was_to_write(place: Place) -> None:
    with closing(place.cluster("student").appender(max_record_bytes=1 << 20)) as appender:
        answer = appender.append(manifest_topic(place.name), 0, b"x")
        with pytest.raises(NotAuthorized, match=rf"may not WRITE topic {place.name}\.manifest"):
            answer.result(AT_ONCE)


def test_letters_may_be_read_by_an_administrator_alone(place: Place) -> None:
    with closing(new_producer(place.broker.anybody)) as producer:
        producer.send(dead_letters_topic(place.name), value=b"no letter", partition=0).get(timeout=30)
    assert list_letters(place.cluster("administrator"), place.stream, most=1, timeout=AT_ONCE).num_foreign
    for role, operation in (("feeder", "DESCRIBE"), ("teacher", "READ"), ("student", "READ")):
        with pytest.raises(NotAuthorized, match=rf"may not {operation} topic {place.name}\.dead-letters"):
            list_letters(place.cluster(role), place.stream, most=1, timeout=AT_ONCE)


def test_a_topic_that_may_be_seen_and_not_read_is_told_as_such(place: Place) -> None:
    user, topic = place.user("student"), f"topic:{soft_targets_topic(place.name, 't')}"
    place.broker.allow(user, "DESCRIBE", topic)
    with place.without("student", "READ", topic), pytest.raises(NotAuthorized, match="may not READ topic"):
        reads_labels(place, "student")
    place.broker.take_away(user, "DESCRIBE", topic)


class Working:
    """Something in a thread, until it ends."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        self._thread.join(30.0)
        assert not self._thread.is_alive(), "it goes on"
        return self.error


def test_a_worker_whose_right_to_its_group_is_withdrawn_ends(place: Place, eventually: Callable[..., Any]) -> None:
    options = TeachOptions(threads=1)
    worker = prepare_worker(place.settings("teacher"), place.name, place.model, options)
    working = Working(worker.run)
    what, named = rights(place, "teacher", "READ", "teacher")
    try:
        eventually(lambda: worker.report.orders >= 1, what="a labelled order")
        with place.without("teacher", "READ", what):
            error = working.end()
    finally:
        worker.stop()
    assert isinstance(error, NotAuthorized)
    assert f"{named} at" in str(error)


def test_a_fleet_reads_no_other_teachers_and_ends_where_it_may_read_no_more(
    place: Place, eventually: Callable[..., Any]
) -> None:
    add_teacher(place.broker.anybody, place.stream, replace(place.stream.teachers["t"], name="other"))
    watch = Watch(place.settings("teacher"), open_stream(place.broker.anybody, place.name), "t", 0.2)
    what, named = rights(place, "teacher", "READ", "teacher")
    watch.start()
    try:
        eventually(lambda: watch.latest, what="a reading")
        with place.without("teacher", "READ", what):
            eventually(lambda: watch.failure, what="the refusal")
    finally:
        watch.close()
    assert isinstance(watch.failure, NotAuthorized)
    assert f"may not DESCRIBE {named}" in str(watch.failure)


def test_a_student_whose_right_to_its_labels_is_withdrawn_ends(place: Place) -> None:
    what, named = rights(place, "student", "READ", "soft-targets")
    with closing(SoftTargetReader(place.cluster("student"), place.stream, ["t"])) as reader:
        reader.seek(37, ())
        working = Working(lambda: reader.next(37))
        with place.without("student", "READ", what):
            error = working.end()
    assert isinstance(error, NotAuthorized)
    assert named in str(error)


def test_a_feeder_whose_right_to_see_its_run_is_withdrawn_ends(place: Place) -> None:
    reporter = RunReporter(place.cluster("student"), place.stream, "r", ["t"])
    what, named = rights(place, "feeder", "DESCRIBE", "run")
    with reporter:
        reporter.trained(Cursor.start())
        lead = (1, 2 * place.stream.manifest.partitions)
        stop = threading.Event()
        working = Working(lambda: feed(place.cluster("feeder"), place.stream, ("r",), lead, stop=stop))
        time.sleep(2.0)  # it has published its lead and waits for credit
        with place.without("feeder", "DESCRIBE", what):
            error = working.end()
        stop.set()
    assert isinstance(error, NotAuthorized)
    assert f"may not DESCRIBE {named}" in str(error)


def test_streams_that_may_be_seen_and_not_read_do_not_hide_the_others(place: Place) -> None:
    from pipeline.manifest_log import ManifestLog, read_manifest_logs

    what, _ = rights(place, "student", "READ", "manifest")
    user = place.user("student")
    place.broker.allow(user, "DESCRIBE", what)
    other: Stream = stream_with_teacher(place.broker.anybody, f"sec-{secrets.token_hex(3)}", place.model)
    place.broker.allow(user, "READ", f"topic:{other.manifest.stream}.manifest")
    with place.without("student", "READ", what):
        logs = read_manifest_logs(place.settings("student"), [place.name, other.manifest.stream])
    assert isinstance(logs[place.name], NotAuthorized)
    assert isinstance(logs[other.manifest.stream], ManifestLog)
    place.broker.take_away(user, "DESCRIBE", what)
