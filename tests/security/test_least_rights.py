"""The whole path on a cluster where nobody may do anything but what their role needs."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.models import classifier
from support.processes import Distillog, distillog_commands
from support.secured_broker import SecuredBroker
from support.small_runs import report, run_file

from pipeline.rights import ROLES, Scope, grants

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.short, pytest.mark.timeout(300)]


class Users:
    """One user of each role, who may do nothing yet."""

    def __init__(self, broker: SecuredBroker, folder: Path, closing: ExitStack) -> None:
        self._broker = broker
        self._suffix = secrets.token_hex(3)
        self._commands: dict[str, Distillog] = {}
        for role in ROLES:
            broker.add_user(self.name(role))
            (own := folder / role).mkdir()
            settings = broker.login(self.name(role), "OPEN")
            self._commands[role] = closing.enter_context(distillog_commands(settings, own))

    def name(self, role: str) -> str:
        return f"{role}-{self._suffix}"

    def __getitem__(self, role: str) -> Distillog:
        return self._commands[role]

    def grant(self, role: str, scope: Scope) -> None:
        for grant in grants(role, scope):
            for operation in grant.operations:
                self._broker.allow(self.name(role), operation, f"{grant.kind}:{grant.name}{'*' * grant.prefixed}")


@pytest.fixture
def users(secured_broker: SecuredBroker, tmp_path: Path) -> Iterator[Users]:
    with ExitStack() as closing:
        yield Users(secured_broker, tmp_path, closing)


def test_the_whole_path_works_with_the_least_rights_of_each_role(
    users: Users, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    name, runs, model = f"sec-{secrets.token_hex(3)}", tmp_path / "runs", classifier(tmp_path / "teacher.onnx")
    administrator = users["administrator"]
    create = ("topics", "create", name, "--dataset", "digits?split=train", "--order-size", 50, "--partitions", 4)
    refused = administrator.refuse(*create, words=(f"may not DESCRIBE topic {name}.manifest",))
    assert f"`distillog topics rights {name} --principal User:{users.name('administrator')} --role ROLE`" in refused

    users.grant("administrator", Scope(name))
    made = administrator.succeed(*create)
    stream_id = re.findall(r"\(([0-9a-f]{16})\)", made)[0]
    assert f"distillog topics rights {name} --principal User:NAME --role ROLE --stream-id {stream_id}" in made
    administrator.succeed("topics", "add-teacher", name, "t", model)

    scope = Scope(name, "t", "student", stream_id)
    for role in ("feeder", "teacher", "student"):
        users[role].refuse("topics", "describe", name, words=("may not DESCRIBE",))
        users.grant(role, scope)

    student = users["student"].start("runs", "start", run_file(tmp_path, name), "--folder", runs)
    feeder = users["feeder"].start("feed", name, "--follow", "student", "--lead", "8:16", "--json")
    worker = users["teacher"].start("teach", name, model, "--threads", 1)
    student.succeed()
    assert "may not" not in student.stderr
    assert json.loads(feeder.succeed())["next"] == 26
    worker.terminate()
    worker.succeed()
    assert report(runs)["stream"]["records"] == 26

    (lag,) = json.loads(administrator.succeed("topics", "lag", name, "--json"))["teachers"]
    assert (lag["labelled"], lag["lag"]) == (26, 0)
    (run,) = json.loads(administrator.succeed("topics", "describe", name, "--json"))["runs"]
    assert (run["name"], run["state"]) == ("student", "done")
    eventually(lambda: administrator.call("topics", "rewind", name, "t", 0).exit_code == 0, what="a rewind")
    assert f"deleted stream {name}: 4 topics, 2 consumer groups" in administrator.succeed(
        "topics", "delete", name, "--yes"
    )
