from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from support.processes import one_error

from pipeline.cli import Distillog, main
from pipeline.cli.topics_text import print_lag
from pipeline.kafka.settings import KafkaSettings
from pipeline.stream_status import RunStatus, StreamStatus, TeacherStatus
from schemas.commits import RunReport
from schemas.errors import (
    BrokerUnavailable,
    ChildLost,
    ConfigError,
    DataUnavailable,
    ManifestMismatch,
    ModelFailed,
    Starved,
)

DATASET = "mnist1d?split=train&n=200"
HEAVY = ("kafka", "numpy", "torch", "onnx", "onnxruntime", "fastavro", "rich")
HELP = {
    "distillog": [],
    "topics": ["topics"],
    "topics create": ["topics", "create"],
    "topics lag": ["topics", "lag"],
    "feed": ["feed"],
}


def call(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env=env)


def process(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", HELP)
def test_help_loads_neither_kafka_nor_numpy_nor_a_framework(name: str) -> None:
    code = (
        "import sys\nfrom pipeline.cli import main\n"
        f"main({[*HELP[name], '--help']!r}, standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", Distillog.LAZY)
def test_the_short_help_of_a_command_can_be_read_without_loading_it(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    width = max(map(len, Distillog.LAZY))
    assert f"  {name:<{width}}  {Distillog.LAZY[name][1]}" in call("--help").output.splitlines()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let `distillog topics list` raise an error."""

    def install(error: BaseException) -> None:
        def fail(settings: object) -> None:
            raise error

        monkeypatch.setattr("pipeline.streams.list_streams", fail)

    return install


ENDS = {
    "an error that is meant": (ConfigError("two\nlines"), 1, "error: two lines\n"),
    "an error with an exit code of its own": (Starved("no label"), 3, "error: no label\n"),
    "Ctrl-C": (KeyboardInterrupt(), 130, ""),
    "an exit of a user's code": (SystemExit(0), 1, "error: code of a dataset, view or student raised SystemExit: 0\n"),
    "no memory": (MemoryError("8 GB"), 1, "error: the memory of this machine is not enough (MemoryError: 8 GB)\n"),
}


@pytest.mark.parametrize("case", ENDS)
def test_errors_end_as_one_line_and_an_exit_code(case: str, failing: Callable[[BaseException], None]) -> None:
    error, code, text = ENDS[case]
    failing(error)
    result = call("--bootstrap-servers", "a:1", "topics", "list")
    assert (result.exit_code, result.stderr, result.stdout) == (code, text, "")


@pytest.mark.parametrize(("package", "extra"), [("torch", "student"), ("onnxruntime", "teacher")])
def test_a_package_that_is_not_there_is_named_with_what_installs_it(
    package: str, extra: str, failing: Callable[[BaseException], None]
) -> None:
    failing(ModuleNotFoundError(f"No module named {package!r}", name=package))
    result = call("--bootstrap-servers", "a:1", "topics", "list")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: this needs the package {package}: `pip install 'distillog[{extra}]'`\n"


def test_a_bug_says_that_it_is_one_and_shows_where(failing: Callable[[BaseException], None]) -> None:
    failing(ValueError("oh"))
    result = call("--bootstrap-servers", "a:1", "topics", "list")
    lines = result.stderr.splitlines()
    assert result.exit_code == 1
    assert lines[0] == "error: unexpected ValueError: oh; this is a bug, please report it"
    assert lines[1] == "Traceback (most recent call last):"


def test_verbose_shows_the_traceback_of_an_error_that_is_meant(failing: Callable[[BaseException], None]) -> None:
    failing(ConfigError("oh"))
    lines = call("--verbose", "--bootstrap-servers", "a:1", "topics", "list").stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "error: oh"


@pytest.mark.parametrize(
    ("error", "code", "supervised"),
    [
        (BrokerUnavailable("no answer"), 1, 75),
        (DataUnavailable("no mount"), 1, 75),
        (ManifestMismatch("another model"), 1, 78),
        (ChildLost("no room for two"), 1, 70),
        (ModelFailed("a device that is broken"), 1, 70),
        (MemoryError("1 TB"), 1, 70),
        (RuntimeError("a bug"), 1, 70),
    ],
)
def test_a_supervised_worker_says_with_its_exit_code_whether_to_start_another(
    error: Exception, code: int, supervised: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("teacher_service.serve.prepare_worker", fail)
    command = ("--bootstrap-servers", "127.0.0.1:1", "teach", "s", "m.onnx")
    assert call(*command).exit_code == code
    assert call(*command, "--supervised").exit_code == supervised
    assert call(*command).exit_code == code


def test_a_wrong_option_is_a_usage_error() -> None:
    assert call("feed", "s", "--lead", "5").exit_code == 2
    assert call("topics", "nonsense").exit_code == 2
    assert call("nonsense").exit_code == 2


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "1e10", "soon"])
@pytest.mark.parametrize(
    "option",
    ["teach --session-timeout", "teach --data-retry", "feed --follow-timeout", "feed --appear-timeout"],
)
def test_a_wait_is_a_number_of_seconds_that_passes(option: str, value: str) -> None:
    if option == "teach --data-retry" and value == "0":
        return  # no second try
    command, name = option.split()
    result = call(command, "s", *(["m.onnx"] if command == "teach" else []), name, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{name}':" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("value", ["-1", "100000", "1e3", "9" * 5000])
def test_more_threads_than_any_machine_has_are_refused(value: str) -> None:
    result = call("teach", "s", "m.onnx", "--threads", value)
    assert result.exit_code == 2
    assert "Invalid value for '--threads'" in result.stderr


@pytest.mark.parametrize("value", ["a\nb", "a\udcff", "\x1b[2J", "a" * 256])
def test_a_worker_is_named_by_what_can_be_shown(value: str) -> None:
    result = call("teach", "s", "m.onnx", "--worker", value)
    assert result.exit_code == 1
    assert one_error(result.stderr, "worker name", "characters that can be printed")


def test_a_lead_of_more_orders_than_there_can_be_is_no_lead() -> None:
    assert call("feed", "s", "--lead", f"1:{'9' * 5000}").exit_code == 2


def test_a_question_that_nobody_can_answer_is_not_asked() -> None:
    code = "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, "--bootstrap-servers", "a:1", "topics", "delete", "s"]
    done = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "Error: there is no input to answer a question: give --yes"


def test_no_broker_is_one_line_at_once() -> None:
    begun = time.monotonic()
    done = process("--bootstrap-servers", "127.0.0.1:9", "topics", "list", DISTILLOG_BOOTSTRAP_TIMEOUT="0.3")
    assert time.monotonic() - begun < 10
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "error: connecting: no answer from Kafka at 127.0.0.1:9; is it running? (`distillog broker status`)\n"
    )


def test_no_address_says_how_to_give_one(tmp_path: Path) -> None:
    done = process("topics", "list", KAFKA_BOOTSTRAP_SERVERS="", DISTILLOG_HOME=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Kafka address: give --bootstrap-servers or KAFKA_BOOTSTRAP_SERVERS")


def test_a_secret_in_a_properties_file_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text("bootstrap.servers=127.0.0.1:9\nsasl.password=hunter2\nsecurity.protocol=SASL_PLAINTEXT\n")
    done = process("--verbose", "--kafka-config", str(file), "topics", "list", DISTILLOG_BOOTSTRAP_TIMEOUT="0.3")
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr


@pytest.fixture
def cli(kafka_settings: KafkaSettings) -> Callable[..., Result]:
    """Call `distillog` against the tests' Kafka."""
    return lambda *arguments: call("--bootstrap-servers", kafka_settings.bootstrap_servers, *arguments)


@pytest.fixture
def stream(cli: Callable[..., Result], fresh_name: Callable[[str], str]) -> str:
    name = fresh_name("cli")
    assert cli("topics", "create", name, "--dataset", DATASET, "--order-size", "10", "--partitions", "4").exit_code == 0
    return name


def stream_id(cli: Callable[..., Result], name: str) -> str:
    found = json.loads(cli("topics", "describe", name, "--json").stdout)["stream_id"]
    assert isinstance(found, str)
    return found


@pytest.mark.kafka
def test_create_says_what_it_made_and_what_comes_next(
    cli: Callable[..., Result], fresh_name: Callable[[str], str]
) -> None:
    name = fresh_name("cli")
    arguments = ["topics", "create", name, "--dataset", DATASET, "--order-size", "64", "--view", "signal"]
    arguments += ["--view-param", "noise=0.1", "--epochs", "2", "--codec", "topk:k=3,temperatures=1|2"]
    result = cli(*arguments)
    made = stream_id(cli, name)
    rest = [
        f"dataset {DATASET}&seed=0: signal float32 [1, 40], 10 classes",
        "200 samples x 2 epochs = 8 orders of 64, 64 partitions, codec topk:k=3,temperatures=1|2, view signal",
        f"next: distillog topics add-teacher {name} NAME MODEL.onnx",
    ]
    assert result.output.splitlines() == [f"created stream {name} ({made})", *rest]
    again = cli(*arguments)
    assert again.output.splitlines() == [f"already there, the same: stream {name} ({made})", *rest]
    answer = json.loads(cli(*arguments, "--json").stdout)
    assert answer == {"stream": name, "stream_id": made, "created": False}


@pytest.mark.kafka
def test_create_keeps_a_folder_as_an_absolute_path_and_says_what_is_in_it(
    cli: Callable[..., Result], fresh_name: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fresh_name("cli")
    for number in range(8):
        place = tmp_path / "photos" / ("ant", "cat")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30 + number, 3), 30 * number, np.uint8)).save(place / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    made = cli("topics", "create", name, "--dataset", "images:photos?channels=1", "--partitions", "4")
    assert made.exit_code == 0, made.output
    folder = f"images:{tmp_path}/photos"
    assert made.output.splitlines()[1] == (
        f"dataset {folder}?size=256&channels=1: image uint8 [1, 256, 256], 2 classes"
    )
    assert json.loads(cli("topics", "describe", name, "--json").stdout)["dataset"] == f"{folder}?channels=1"


@pytest.mark.kafka
def test_create_with_another_setting_is_refused_with_the_difference(cli: Callable[..., Result], stream: str) -> None:
    result = cli("topics", "create", stream, "--dataset", DATASET, "--order-size", "20", "--partitions", "4")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: stream '{stream}' exists and differs: order_size is 10, asked 20; give another name, or remove it "
        f"with all its labels first: `distillog topics delete {stream}`\n"
    )


REFUSED = {
    "a name with a dot": (["a.b", "--dataset", DATASET], "stream name 'a.b': use 1 to 64 letters"),
    "an unknown dataset": (["a", "--dataset", "mnist1"], "no dataset 'mnist1': did you mean 'mnist1d'?"),
    "an unknown view": (["a", "--dataset", DATASET, "--view", "signl"], "no view 'signl'"),
    "an unknown view parameter": (
        ["a", "--dataset", DATASET, "--view", "signal", "--view-param", "nois=1"],
        "view signal has no parameter 'nois'",
    ),
    "an unknown codec": (["a", "--dataset", DATASET, "--codec", "float17"], "unknown codec 'float17': did you mean"),
    "another class count": (["a", "--dataset", DATASET, "--classes", "7"], "--classes 7: dataset mnist1d"),
    "no epoch": (["a", "--dataset", DATASET, "--epochs", "0"], "epochs is 0"),
    "no copy": (["a", "--dataset", DATASET, "--replication-factor", "0"], "--replication-factor 0: give 1 to 32767"),
    "copies beyond count": (["a", "--dataset", DATASET, "--replication-factor", "99999"], "--replication-factor 99999"),
    "no retention for ever": (["a", "--dataset", DATASET, "--retention-hours", "nan"], "--retention-hours nan: give a"),
    "no retention": (["a", "--dataset", DATASET, "--retention-hours", "0"], "--retention-hours 0: give a positive"),
}


@pytest.mark.kafka
@pytest.mark.parametrize("case", REFUSED)
def test_create_refuses_what_makes_no_sense_in_one_line(case: str, cli: Callable[..., Result]) -> None:
    arguments, text = REFUSED[case]
    result = cli("topics", "create", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {text}")
    assert result.stderr.count("\n") == 1


@pytest.mark.kafka
def test_list_shows_each_stream(cli: Callable[..., Result], stream: str) -> None:
    lines = [line.split() for line in cli("topics", "list").output.splitlines()]
    assert lines[0] == ["STREAM", "DATASET", "ORDERS", "TEACHERS"]
    assert [stream, DATASET, "20", "-"] in lines
    row = {"stream": stream, "stream_id": stream_id(cli, stream), "dataset": DATASET, "orders": 20, "teachers": []}
    assert row in json.loads(cli("topics", "list", "--json").stdout)


@pytest.mark.kafka
def test_feed_says_what_it_did(cli: Callable[..., Result], stream: str) -> None:
    result = cli("feed", stream, "--quiet")
    assert result.output == f"{stream}: all orders are fed; published 20, 20 of 20 orders are fed\n"
    assert json.loads(cli("feed", stream, "--json", "--quiet").stdout) == {
        "published": 0,
        "next": 20,
        "orders": 20,
        "why": "all orders are fed",
    }


@pytest.mark.kafka
def test_describe_and_lag_show_the_stream(cli: Callable[..., Result], stream: str) -> None:
    cli("feed", stream)
    described = cli("topics", "describe", stream).output.splitlines()
    assert described[0] == f"stream       {stream} ({stream_id(cli, stream)})"
    assert described[1] == f"dataset      {DATASET} (200 samples, 10 classes)"
    assert described[3:7] == [
        "view         none",
        "orders       20 of 10 samples, 1 epochs, seed 0",
        "partitions   4",
        "codec        float16 (records up to 8192 bytes)",
    ]
    lag = ["fed 20 of 20 orders, 0 dead letters", "no teachers"]
    assert described[7:] == ["", *lag]
    assert cli("topics", "lag", stream).output.splitlines() == lag


@pytest.mark.parametrize(("state", "said"), [("Dead", "no worker yet"), ("Stable", "group Stable, 0 members")])
def test_a_group_that_nobody_has_joined_is_not_called_dead(
    state: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = TeacherStatus("cnn", "g", state, members=(), labelled=0, lag=7, offsets=(), published=0)
    print_lag(StreamStatus("s", "id", 9, 7, (teacher,), {}, runs=(), dead_letters=0), partitions=False)
    assert capsys.readouterr().out.splitlines()[1] == f"teacher cnn: 0 orders labelled, lag 7, {said}"


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (RunReport(3, 0, 0, 1.0, "id", "h", "done", 3), "done, 3 of 3 passes"),
        (RunReport(2, 8, 8, 1.0, "id", "h", "done", 3), "done, 3 of 3 passes"),  # what fills no batch was left over
        (RunReport(2, 5, 5, 1.0, "id", "h", "done"), "done, 2 passes and 5 of 9 orders"),
        (RunReport(1, 0, 0, 1.0, "id", "h", "done"), "done, 1 pass"),
        (RunReport(0, 5, 5, 1.0, "id", "h", "done"), "done, 5 of 9 orders"),
        (RunReport(1, 7, 4, 1.0, "id", "h", "training", 3), "training, pass 2 of 3, order 7 of 9, checkpoint at 4"),
        (RunReport(0, 7, 4, 1.0, "id", "h", "stopped"), "stopped, pass 1, order 7 of 9, checkpoint at 4"),
    ],
)
def test_a_run_is_said_to_be_where_it_is_and_one_that_is_done_what_it_came_to(
    report: RunReport, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = StreamStatus("s", "id", 9, 9, (), {}, runs=(RunStatus("mlp", report, 2.5),), dead_letters=0)
    print_lag(status, partitions=False)
    assert capsys.readouterr().out.splitlines()[-1] == f"run mlp: {said}, on h, reported 2.5 s ago"


@pytest.mark.kafka
def test_delete_asks_first(cli: Callable[..., Result], stream: str) -> None:
    assert cli("topics", "delete", stream).exit_code == 1  # nobody answers
    assert cli("topics", "lag", stream).exit_code == 0
    result = cli("topics", "delete", stream, "--yes")
    assert result.output == f"deleted stream {stream}: 3 topics, 0 consumer groups\n"
    assert cli("topics", "lag", stream).exit_code == 1


@pytest.mark.kafka
@pytest.mark.parametrize(
    "command", [["feed"], ["topics", "describe"], ["topics", "lag"], ["topics", "delete", "--yes"]]
)
def test_an_unknown_stream_is_one_line(command: list[str], cli: Callable[..., Result]) -> None:
    result = cli(*command, "not-there")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no stream 'not-there' at ")
    assert result.stderr.count("\n") == 1


@pytest.mark.kafka
def test_rewind_of_an_unknown_teacher_is_one_line(cli: Callable[..., Result], stream: str) -> None:
    result = cli("topics", "rewind", stream, "cnn", "3")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: stream '{stream}' has no teacher 'cnn' (there: none)")
