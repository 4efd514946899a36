"""The manifests call the commands that there are, in an environment that those read, and leave them time to end."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from support.kustomize import build, pod_templates

from pipeline import metrics_server
from pipeline.cli import main
from pipeline.names import work_orders_topic
from schemas.names import check_label, check_name
from student_trainer.run.settings import load_run
from teacher_service import watchdog

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docker" / "kubernetes" / "example"
BUILT = {f"{each['kind']}/{each['metadata']['name']}": each for each in build(EXAMPLE)}
PODS = dict(pod_templates(list(BUILT.values())))
STREAM: dict[str, str] = BUILT["ConfigMap/stream"]["data"]


def environment(pod: dict[str, Any]) -> dict[str, str]:
    """What the container finds; values that the cluster fills in are such as it gives."""
    (container,) = pod["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": "stream"}}]
    found = dict(STREAM)
    for each in container["env"]:
        filled_in = {"resourceFieldRef": "4", "fieldRef": "teacher-cpu-6d4b75cb6d-hwx2p"}
        found[each["name"]] = each["value"] if "value" in each else filled_in[next(iter(each["valueFrom"]))]
    return found


def command_lines(pod: dict[str, Any]) -> Iterator[list[str]]:
    """The `distillog` command lines of a pod, as the container gets them."""
    (container,) = pod["containers"]
    known = environment(pod)

    def expanded(text: str) -> str:
        return re.sub(r"\$\((\w+)\)|\"\$(\w+)\"", lambda match: known[match[1] or match[2]], text)

    command = [expanded(word) for word in container["command"]]
    if command[:2] == ["sh", "-ec"]:
        yield from (shlex.split(expanded(line)) for line in container["args"][0].splitlines())
    elif command[:2] == ["python", "/opt/distillog/feed.py"]:
        yield ["distillog", "feed", *command[2:]]
    elif command[:2] == ["python", "/opt/distillog/train.py"]:
        yield from (["distillog", "runs", *words] for words in (["start", command[2]], ["resume", known["RUN"]]))
    else:
        yield command


def parsed(words: list[str]) -> dict[str, Any]:
    """Parse a command line with the environment, and return all that it sets; raises click's usage errors."""
    assert words[0] == "distillog"
    context = main.make_context("distillog", words[1:])
    command: click.Command = main
    while isinstance(command, click.Group):
        name, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert below is not None
        command, context = below, below.make_context(name, rest, parent=context)
    return context.params


def options(command: click.Command = main, prefix: str = "DISTILLOG") -> Iterator[str]:
    """Names of all environment variables that set an option."""
    for param in command.params:
        if isinstance(param, click.Option):
            yield from param.envvar or [f"{prefix}_{str(param.name).upper()}"]
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), name)
            assert below is not None
            yield from options(below, f"{prefix}_{name.upper().replace('-', '_')}")


@pytest.mark.parametrize("name", PODS)
def test_a_pods_commands_parse_in_its_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in environment(PODS[name]).items():
        monkeypatch.setenv(key, value)
    lines = list(command_lines(PODS[name]))
    assert lines
    for line in lines:
        parsed(line)


@pytest.mark.parametrize("name", PODS)
def test_a_variable_is_an_option_or_is_written_into_a_command(name: str) -> None:
    texts = str([[each["command"], each.get("args")] for each in PODS[name]["containers"]])
    written = {*re.findall(r"\$\(?(\w+)", texts), "STREAM", "TEACHER", "RUN", "MODEL"}
    assert [key for key in environment(PODS[name]) if key not in {*options(), *written}] == []


def test_the_environment_reaches_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> dict[str, Any]:
        for key, value in environment(PODS[name]).items():
            monkeypatch.setenv(key, value)
        return parsed(next(command_lines(PODS[name])))

    assert found("Job/topics")["view_params"] == ("min_area=0.3", "flip=0.5")
    assert found("Job/feed")["follow_timeout"] == 86_400.0
    teacher = found("Deployment/teacher-gpu")
    assert (teacher["provider"], teacher["threads"]) == ("cuda", 4)
    assert check_label("worker", teacher["worker"])


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_worker_is_given_longer_than_its_longest_order(kind: str) -> None:
    pod = PODS[f"Deployment/teacher-{kind}"]
    longest = watchdog.FIRST_DEADLINE + watchdog.LEAVE
    assert pod["terminationGracePeriodSeconds"] > longest


SERVING = [name for name in PODS if name != "Job/topics"]


@pytest.mark.parametrize("name", SERVING)
def test_probes_ask_the_port_that_the_pods_commands_serve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = PODS[name]["containers"]
    (port,) = container["ports"]
    probes = {key: container[key] for key in container if key.endswith("Probe")}
    wanted = {"livenessProbe": "/livez"} | ({"readinessProbe": "/readyz"} if "teacher" in name else {})
    assert {key: probe["httpGet"] for key, probe in probes.items()} == {
        key: {"path": path, "port": port["name"]} for key, path in wanted.items()
    }
    for key, value in environment(PODS[name]).items():
        monkeypatch.setenv(key, value)
    assert [parsed(line)["metrics_port"] for line in command_lines(PODS[name])] == [
        ("0.0.0.0", port["containerPort"]) for _ in command_lines(PODS[name])
    ]


@pytest.mark.parametrize("name", SERVING)
def test_a_probe_ends_only_what_has_been_silent_for_minutes(name: str) -> None:
    (container,) = PODS[name]["containers"]
    probe = container["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 180
    assert probe["timeoutSeconds"] > metrics_server.DEADLINE


def test_both_kinds_of_workers_differ_only_in_what_they_run_on() -> None:
    first, second = (dict(PODS[f"Deployment/teacher-{kind}"]["containers"][0]) for kind in ("cpu", "gpu"))
    for each in (first, second):
        for key in ("image", "resources"):
            del each[key]
        each["env"] = [one for one in each["env"] if one["name"] != "DISTILLOG_TEACH_PROVIDER"]
    assert first == second


@pytest.mark.parametrize("name", [name for name in PODS if name.startswith("Job/")])
def test_a_drained_node_costs_a_job_none_of_its_tries(name: str) -> None:
    job = BUILT[name]["spec"]
    ignored = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert job["podFailurePolicy"]["rules"][0] == ignored
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # what a pod failure policy asks for


def test_the_names_of_the_example_belong_together() -> None:
    run = load_run(EXAMPLE / "student.toml")
    assert (run.name, run.data.stream) == (STREAM["RUN"], STREAM["STREAM"])
    assert [teacher.name for teacher in run.teachers] == [STREAM["TEACHER"]]
    assert STREAM["MODEL"].startswith("/data/")
    for kind in ("cpu", "gpu"):
        trigger = BUILT[f"ScaledObject/teacher-{kind}"]["spec"]["triggers"][0]["metadata"]
        assert trigger["bootstrapServers"] == STREAM["KAFKA_BOOTSTRAP_SERVERS"]
        assert trigger["topic"] == work_orders_topic(check_name("stream", STREAM["STREAM"]))
        group = rf"distillog\.{STREAM['STREAM']}\.[0-9a-f]{{16}}\.teacher\.{STREAM['TEACHER']}"
        assert re.fullmatch(group, trigger["consumerGroup"])


def test_what_is_scaled_and_what_is_mounted_is_there() -> None:
    for kind in ("cpu", "gpu"):
        target = BUILT[f"ScaledObject/teacher-{kind}"]["spec"]["scaleTargetRef"]["name"]
        assert "replicas" not in BUILT[f"Deployment/{target}"]["spec"]
    by_the_user = {("secret", "kafka"), ("claim", "data")}
    for pod in PODS.values():
        for volume in pod["volumes"]:
            if secret := volume.get("secret"):
                assert ("secret", secret["secretName"]) in by_the_user
            if claim := volume.get("persistentVolumeClaim"):
                there = f"PersistentVolumeClaim/{claim['claimName']}" in BUILT
                assert there or ("claim", claim["claimName"]) in by_the_user
            if config := volume.get("configMap"):
                assert f"ConfigMap/{config['name']}" in BUILT


def test_the_scripts_and_folders_that_pods_name_are_in_the_images() -> None:
    images = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    stages = {re.match(r"\S+ AS (\S+)", stage)[1]: stage for stage in images.split("\nFROM ")[1:]}  # type: ignore[index]
    for name, pod in PODS.items():
        (container,) = pod["containers"]
        stage = stages[re.search(r"distillog-(teacher|student)", container["image"])[1]]  # type: ignore[index]
        for script in re.findall(r"/opt/distillog/(\w+\.py)", " ".join(container["command"])):
            assert f"COPY docker/{script} /opt/distillog/{script}" in stage, name
