"""The table of rights, and the commands that grant them."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import (
    dead_letters_topic,
    manifest_topic,
    run_group,
    soft_targets_topic,
    teacher_group,
    work_orders_topic,
)
from pipeline.rights import ROLES, Grant, Scope, commands, grants
from schemas.errors import ConfigError


def covered(grant: Grant, name: str) -> bool:
    return name.startswith(grant.name) if grant.prefixed else name == grant.name


@pytest.mark.parametrize("role", ROLES)
def test_what_a_role_gets_is_of_its_stream_alone(role: str) -> None:
    for scope in (Scope("sec"), Scope("sec", "t", "r", "0123456789abcdef")):
        for grant in grants(role, scope):
            assert grant.name.startswith("sec." if grant.kind == "topic" else "distillog.sec.")
            assert grant.prefixed == grant.name.endswith(".")


@pytest.mark.parametrize("role", ROLES)
def test_a_topic_or_group_is_named_once(role: str) -> None:
    for scope in (Scope("sec"), Scope("sec", "t"), Scope("sec", "t", "r", "0123456789abcdef")):
        named = [(grant.kind, grant.name) for grant in grants(role, scope)]
        assert len(set(named)) == len(named)


@pytest.mark.parametrize("role", ROLES)
def test_an_administrator_has_the_rights_of_every_role(role: str) -> None:
    scope = Scope("sec", "t", "r", "0123456789abcdef")
    held = grants("administrator", scope)
    for grant in grants(role, scope):
        over = {each for one in held if one.kind == grant.kind and covered(one, grant.name) for each in one.operations}
        assert over, grant
        assert set(grant.operations) <= over | {"DESCRIBE"}, grant


def test_the_names_are_those_that_streams_have() -> None:
    from support.streams import bare_manifest

    manifest = bare_manifest(stream="sec", stream_id="ab12")
    topics = [f("sec") for f in (manifest_topic, work_orders_topic, dead_letters_topic)]
    topics.append(soft_targets_topic("sec", "t"))
    groups = [teacher_group(manifest, "t"), run_group(manifest, "r")]
    for scope in (Scope("sec"), Scope("sec", "t", "r", "ab12")):
        student = grants("student", scope)
        for name in topics + groups:
            assert any(covered(grant, name) for grant in student), name
        group, *_ = [grant for grant in grants("teacher", scope) if grant.kind == "group"]
        assert covered(group, groups[0])
    narrow = [grant for grant in grants("student", Scope("sec", "t", "r", "ab12")) if "READ" in grant.operations]
    assert not any(covered(grant, groups[0]) for grant in narrow), "a student is no worker"
    assert not any(covered(grant, run_group(manifest, "another")) for grant in narrow)


@pytest.mark.parametrize(
    ("role", "scope", "says"),
    [
        ("teecher", Scope("sec"), "did you mean 'teacher'"),
        ("teacher", Scope("a.b"), "stream name 'a.b'"),
        ("teacher", Scope("sec", "a b"), "teacher name 'a b'"),
        ("student", Scope("sec", run="*"), "run name"),
        ("student", Scope("sec", stream_id="../"), "stream ID name"),
    ],
)
def test_what_no_stream_can_have_is_refused(role: str, scope: Scope, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        grants(role, scope)


@pytest.mark.parametrize("principal", ["alice", "User:", ":alice", "", "User:a\nb"])
def test_what_is_no_principal_is_refused(principal: str) -> None:
    with pytest.raises(ConfigError, match=r"--principal .*such as User:"):
        commands([], principal, "k:1")


def test_a_command_is_what_a_shell_hands_on() -> None:
    several = Grant(("READ", "DESCRIBE_CONFIGS"), "topic", "sec.", True, "why")
    one = Grant(("READ",), "group", "distillog.sec.1.run.r", False, "why")
    assert commands([several, one], "User:CN=a b", "k:1", "admin.properties") == [
        "kafka-acls.sh --bootstrap-server k:1 --command-config admin.properties --add --allow-principal 'User:CN=a b' "
        "--operation Read --operation DescribeConfigs --topic sec. --resource-pattern-type prefixed",
        "kafka-acls.sh --bootstrap-server k:1 --command-config admin.properties --add --allow-principal 'User:CN=a b' "
        "--operation Read --group distillog.sec.1.run.r",
    ]


def test_the_command_prints_them_without_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "DISTILLOG_BOOTSTRAP_SERVERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISTILLOG_HOME", str(tmp_path))
    asked = ["topics", "rights", "sec", "--principal", "User:ann", "--role", "teacher", "--teacher", "t"]
    lines = CliRunner().invoke(main, asked).stdout.splitlines()
    needed = grants("teacher", Scope("sec", "t"))
    assert lines[1::2] == commands(needed, "User:ann", "HOST:PORT")
    assert lines[::2] == [f"# {grant.why}" for grant in needed]
    of_json = json.loads(CliRunner().invoke(main, ["--bootstrap-servers", "k:9092", *asked, "--json"]).stdout)
    assert [row["command"] for row in of_json] == commands(needed, "User:ann", "k:9092")
    assert of_json[0]["operations"] == ["READ"]


@pytest.mark.parametrize(
    ("options", "principal", "who"),
    [
        ({}, None, "this client"),
        ({"sasl_plain_username": "ann"}, None, "this client"),  # nobody asks for it
        ({"security_protocol": "SASL_SSL", "sasl_plain_username": "ann"}, "User:ann", "User:ann"),
        ({"security_protocol": "SSL", "ssl_certfile": "/c.pem"}, None, "the owner of /c.pem"),
    ],
)
def test_a_client_is_known_by_the_name_that_it_logs_in_with(
    options: dict[str, str], principal: str | None, who: str
) -> None:
    settings = KafkaSettings("k:1", options)
    assert (settings.principal, settings.who) == (principal, who)
    assert settings.secured == ("security_protocol" in options)
