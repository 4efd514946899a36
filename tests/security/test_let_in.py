"""Who is let in walks the whole path, and is told when that ends in the middle of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from support.models import classifier
from support.processes import Distillog, distillog_commands
from support.secured_broker import SECRET, SecuredBroker, running_secured_broker
from support.small_runs import checkpoints, report, run_file

from pipeline.kafka.clients import new_admin
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import teacher_group
from pipeline.streams import open_stream
from schemas.errors import DistillogError, NotAdmitted

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


def by_password(broker: SecuredBroker) -> KafkaSettings:
    broker.add_user("admin")
    return broker.login("admin")


def by_certificate(broker: SecuredBroker) -> KafkaSettings:
    return broker.with_certificate(broker.authority.issue("admin"))


def make(distillog: Distillog, name: str, folder: Path, epochs: int = 1) -> Path:
    """A stream of 26 orders an epoch, and its teacher's model."""
    model = classifier(folder / "teacher.onnx")
    create = ("topics", "create", name, "--dataset", "digits?split=train", "--order-size", 50, "--partitions", 4)
    distillog.succeed(*create, "--epochs", epochs)
    distillog.succeed("topics", "add-teacher", name, "t", model)
    return model


@pytest.mark.parametrize("way", [by_password, by_certificate])
def test_sample_ids_become_a_student_behind_a_login(
    way: Callable[[SecuredBroker], KafkaSettings],
    secured_broker: SecuredBroker,
    fresh_name: Callable[[str], str],
    tmp_path: Path,
) -> None:
    name, runs = fresh_name("secured"), tmp_path / "runs"
    with distillog_commands(way(secured_broker), tmp_path) as distillog:
        model = make(distillog, name, tmp_path)
        distillog.succeed("feed", name)
        teacher = distillog.start("--verbose", "teach", name, model, "--until-idle")
        teacher.succeed()
        distillog.succeed("runs", "start", run_file(tmp_path, name), "--folder", runs, "--quiet")
        assert report(runs)["steps"] == 1297 // 12
        assert SECRET not in teacher.stdout + teacher.stderr
        distillog.succeed("topics", "delete", name, "--yes")


def num_workers(broker: SecuredBroker, name: str) -> int:
    """Members of the teacher's group, by the super user."""
    group = teacher_group(open_stream(broker.anybody, name).manifest, "t")
    with closing(KafkaCluster(broker.anybody).admin()) as admin:
        return admin.num_members([group])[group]


@pytest.mark.faults
def test_a_password_that_is_changed_ends_who_is_at_work(
    secured_broker: SecuredBroker, fresh_name: Callable[[str], str], tmp_path: Path, eventually: Callable[..., object]
) -> None:
    user, name, runs = fresh_name("user"), fresh_name("changed"), tmp_path / "runs"
    secured_broker.add_user(user)
    for resource in ("topic:*", "group:*", "cluster"):
        secured_broker.allow(user, "ALL", resource)
    with distillog_commands(secured_broker.login(user, "BRIEF"), tmp_path) as distillog:
        model = make(distillog, name, tmp_path, epochs=5000)
        teacher = distillog.start("teach", name, model, "--threads", 1)
        fleet = distillog.start("fleet", name, model, "--max", 1)
        student = distillog.start("runs", "start", run_file(tmp_path, name), "--folder", runs)
        feeder = distillog.start("feed", name, "--follow", "student", "--lead", "8:16")
        eventually(lambda: num_workers(secured_broker, name) == 2, 120.0, "both workers")
        eventually(lambda: checkpoints(runs), 120.0, "a student at work")
        secured_broker.add_user(user, f"{SECRET}-changed")
        for child in (teacher, student, feeder, fleet):
            child.refuse(f"refuses user '{user}' (SCRAM-SHA-512): wrong name or password")
            assert SECRET not in child.stdout + child.stderr


@pytest.mark.faults
@pytest.mark.short
def test_a_login_that_was_good_is_believed_to_be_refused_only_when_it_is_for_some_seconds(
    secured_broker: SecuredBroker, fresh_name: Callable[[str], str], eventually: Callable[..., object]
) -> None:
    user = fresh_name("user")
    secured_broker.add_user(user)
    settings = secured_broker.login(user, "BRIEF")
    standing = settings.standing

    def ask(until: Callable[[], bool]) -> bool:
        with suppress(DistillogError), kafka_errors("asking", settings):
            admin.list_topics()
        return until()

    with closing(new_admin(settings)) as admin:
        assert standing.let_in
        for _ in range(2):
            secured_broker.add_user(user, f"{SECRET}-changed")
            eventually(lambda: ask(lambda: standing.refused_since is not None), 60.0, "a refusal")
            secured_broker.add_user(user)
            eventually(lambda: ask(lambda: standing.refused_since is None), 60.0, "being let in again")
        assert not standing.refusal
        secured_broker.add_user(user, f"{SECRET}-changed")
        eventually(lambda: ask(lambda: standing.refused_since is not None), 60.0, "a refusal")
        begun = standing.refused_since or 0.0
        eventually(lambda: ask(lambda: bool(standing.refusal)), 60.0, "a refusal that is believed")
        assert time.monotonic() - begun > 10.0
    with pytest.raises(NotAdmitted, match=f"refuses user '{user}'"):
        new_admin(settings)


@pytest.mark.faults
def test_a_broker_that_restarts_refuses_nobody(
    fresh_name: Callable[[str], str], tmp_path: Path, eventually: Callable[..., object]
) -> None:
    name = fresh_name("restarted")
    with running_secured_broker(tmp_path / "own") as broker:
        settings = by_password(broker)
        with distillog_commands(settings, tmp_path) as distillog:
            model = make(distillog, name, tmp_path)
            teacher = distillog.start("teach", name, model)
            eventually(lambda: num_workers(broker, name) == 1, 120.0, "a worker")
            broker.local.kill()
            broker.local.start()
            distillog.succeed("feed", name)
            distillog.succeed("runs", "start", run_file(tmp_path, name), "--folder", tmp_path / "runs", "--quiet")
            teacher.terminate()
            teacher.succeed()
            assert "refuse" not in teacher.stderr
