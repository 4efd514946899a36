"""Every name that a user can write is in the docs, and what the docs write is true."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import numpy as np
import pytest
from support.small_texts import text_files

import schemas.errors
from distillog_command import PACKAGES
from pipeline.cli import main
from pipeline.datasets import DATASETS, open_dataset
from pipeline.datasets.base import ArrayDataset, Field
from pipeline.kafka.properties import _ALIASES, _ALLOWED
from pipeline.kafka.settings import KafkaSettings
from pipeline.onnx_runtime import PROVIDERS
from pipeline.views import VIEWS, view_spec
from pipeline.views.fetch import Fetcher
from schemas.avro import REGISTRY
from schemas.codecs import CODECS, CodecSpec
from schemas.columns import DTYPES
from schemas.errors import ConfigError, DistillogError
from schemas.teacher_output import KINDS
from student_trainer.evaluate import evaluate
from student_trainer.learning.losses import LOSSES
from student_trainer.learning.optimizers import OPTIMIZERS, build_optimizer
from student_trainer.learning.schedules import SCHEDULES, build_schedule
from student_trainer.learning.student_inputs import InputField
from student_trainer.learning.students import OF_TOKENS, STUDENTS, Network, build_student
from student_trainer.learning.targets import TargetSpec, target_name
from student_trainer.learning.terms import resolve
from student_trainer.run.choices import Choice
from student_trainer.run.metric_settings import MetricSettings
from student_trainer.run.settings import DEVICES, PRECISIONS, SOURCES, RunSettings, load_run, run_settings
from student_trainer.run.student_settings import StudentSettings
from student_trainer.run.toml_tables import key_of
from student_trainer.scores.metrics import METRICS

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md")))
}
CLI, RUN_FILE, DATA, KAFKA = (PAGES[f"docs/{name}.md"] for name in ("cli", "run-file", "data", "kafka"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def blocks(*languages: str) -> dict[str, str]:
    """ "page:line" -> text of each code block in one of the languages."""
    return {
        f"{page}:{text.count(chr(10), 0, match.start()) + 1}": match[2]
        for page, text in PAGES.items()
        for match in FENCE.finditer(text)
        if match[1] in languages
    }


def section(page: str, title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$\n(.*?)(?=^#{{1,6}} |\Z)", page, re.M | re.S)
    assert found, f"no heading {title!r}"
    return found[2]


def has_code(text: str, name: str) -> bool:
    """Whether a name stands in the text as code: `name`, or at the beginning of it (`name VALUE`, `name = 3`)."""
    return re.search(rf"`{re.escape(name)}[` ]", text) is not None


# --- commands ---------------------------------------------------------------------------------------------------------


def commands(command: click.Command = main, path: str = "distillog") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from commands(below, f"{path} {name}")


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS)
def test_a_command_and_all_its_arguments_and_options_are_documented(path: str) -> None:
    command = COMMANDS[path]
    arguments = [
        each.make_metavar(click.Context(command)) for each in command.params if isinstance(each, click.Argument)
    ]
    text = section(CLI, " ".join([path, *arguments]))
    options = [name for each in command.params if isinstance(each, click.Option) for name in each.opts]
    assert [name for name in options if not has_code(text, name)] == []


@pytest.mark.parametrize("path", COMMANDS)
def test_a_commands_table_of_options_has_no_other_and_none_twice(path: str) -> None:
    heading = next(line for line in CLI.splitlines() if re.fullmatch(rf"#+ {path}( [A-Z_ ]+)?", line))
    written = re.findall(r"^\| `(--[a-z0-9-]+)", section(CLI, heading.lstrip("# ")), re.M)
    known = {name for each in COMMANDS[path].params for name in each.opts}
    assert [name for name in written if name not in known] == []
    assert [name for name in written if written.count(name) > 1] == []


def test_the_options_of_all_commands_are_documented() -> None:
    text = section(CLI, "For all commands")
    for param in main.params:
        assert any(has_code(text, name) for name in param.opts), param.name


def test_the_prefix_of_environment_variables_is_the_documented_one() -> None:
    assert main.context_settings["auto_envvar_prefix"] == "DISTILLOG"
    above = main.make_context("distillog", ["teach"])
    below = click.Context(COMMANDS["distillog teach"], parent=above, info_name="teach")
    assert below.auto_envvar_prefix == "DISTILLOG_TEACH"


@pytest.mark.parametrize("path", COMMANDS)
def test_an_option_that_goes_by_another_name_in_the_environment_is_documented(path: str) -> None:
    for each in COMMANDS[path].params:
        if isinstance(each, click.Option) and each.envvar is None and f"--{each.name}" not in _underscored(each.opts):
            assert f"`{each.opts[0]}` is `{str(each.name).upper()}`" in CLI.replace("\n", " ")


def _underscored(names: list[str]) -> list[str]:
    return ["--" + name.removeprefix("--").replace("-", "_") for name in names]


def test_several_values_in_the_environment_are_separated_by_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, value = "DISTILLOG_TOPICS_CREATE_VIEW_PARAMS='flip=0.5 min_area=0.3'".partition("=")
    assert f"{name}={value}" in CLI
    monkeypatch.setenv(name, value.strip("'"))
    context = parsed("distillog topics create birds --dataset digits")
    assert context.params["view_params"] == ("flip=0.5", "min_area=0.3")


def test_every_environment_variable_that_the_code_reads_is_documented() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    sources = [path.read_text(encoding="utf-8") for path in files]
    found = {name for text in sources for name in re.findall(r'"(DISTILLOG_[A-Z_]+|[A-Z_]+_BOOTSTRAP_SERVERS)"', text)}
    assert [name for name in sorted(found) if not has_code(CLI, name)] == []


def parsed(line: str) -> click.Context:
    """Parse a `distillog ...` line as the command would, without calling it. Raises click's usage errors."""
    words = shlex.split(line, comments=True)
    for stop in ("&&", "||", "|", "&", ";", ">"):
        words = words[: words.index(stop)] if stop in words else words
    context = main.make_context("distillog", words[1:])
    command: click.Command = main
    while isinstance(command, click.Group):
        words = [*context._protected_args, *context.args]
        name, below, rest = command.resolve_command(context, words)
        assert below is not None
        command = below
        context = command.make_context(name, rest, parent=context)
    return context


LINES = {
    f"{place} {line[:60]}": line
    for place, text in blocks("sh", "console").items()
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("distillog ")
}


@pytest.mark.parametrize("place", LINES)
def test_a_written_command_parses(place: str) -> None:
    parsed(LINES[place])


def test_a_command_named_in_a_sentence_exists() -> None:
    for page, text in PAGES.items():
        for words in re.findall(r"`distillog ([a-z][^`]*)`", FENCE.sub("", text)):
            command: click.Command = main
            for word in words.split():
                if not isinstance(command, click.Group):
                    break
                below = command.get_command(click.Context(command), word)
                assert below is not None, f"{page}: distillog {words}"
                command = below


# --- errors -----------------------------------------------------------------------------------------------------------

ERRORS = {
    name: each
    for name, each in vars(schemas.errors).items()
    if isinstance(each, type) and issubclass(each, DistillogError)
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_and_its_exit_code_are_documented(name: str) -> None:
    assert has_code(CLI, name)
    row = re.search(rf"^\| (\d+) \| .*`{name}`", CLI, re.M)
    assert (int(row[1]) if row else 1) == ERRORS[name].exit_code
    assert name in str(schemas.errors.__doc__)


# --- the run file -----------------------------------------------------------------------------------------------------


def sections(of: type = RunSettings, above: str = "") -> Iterator[tuple[str, Any]]:
    """Heading and dataclass of each section of the run file, and of those within them."""
    for name, hint in inspect.get_annotations(of, eval_str=True).items():
        many = get_origin(hint) is tuple
        inner = next((each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)), None)
        if inner is not None and not (above and inner in (Choice, StudentSettings)):
            yield f"`[[{above}{name}]]`" if many else f"`[{above}{name}]`", inner
            yield from sections(inner, f"{above}{name}.")


SECTIONS = {"The top": RunSettings, **dict(sections())}


@pytest.mark.parametrize("title", SECTIONS)
def test_every_key_of_the_run_file_is_documented_with_its_default(title: str) -> None:
    text = section(RUN_FILE, title)
    for each in dataclasses.fields(SECTIONS[title]):
        if each.name == "params" or f"`[{each.name}]`" in SECTIONS or f"`[[{each.name}]]`" in SECTIONS:
            continue
        row = re.search(rf"^\| `{key_of(each)}` \| (.*?) \|", text, re.M)
        assert row, f"{title}: {each.name}"
        if isinstance(each.default, bool | int | float) or each.default in (*SOURCES, *DEVICES, *PRECISIONS):
            assert tomllib.loads(f"x = {row[1].strip('`')}")["x"] == each.default, f"{title}: {each.name}"


@pytest.mark.parametrize("name", [*SOURCES, *DEVICES, *PRECISIONS])
def test_every_choice_of_the_run_file_is_documented(name: str) -> None:
    assert has_code(RUN_FILE, name)


def parameters(function: Callable[..., Any], skip: int) -> dict[str, Any]:
    return {each.name: each.default for each in list(inspect.signature(function).parameters.values())[skip:]}


NAMED = [
    *(("`[student]`", name, parameters(function, 2)) for name, function in STUDENTS.items()),
    *(("`[[losses]]`", name, {}) for name in LOSSES),
    *(("`[[evaluation.metrics]]`", name, {}) for name in METRICS),
    *(("`[optimizer]`", name, parameters(function, 2)) for name, function in OPTIMIZERS.items()),
    *(("`[schedule]`", name, parameters(function, 2)) for name, function in SCHEDULES.items()),
]


@pytest.mark.parametrize(("title", "name", "params"), NAMED)
def test_every_member_of_the_training_dicts_is_documented(title: str, name: str, params: dict[str, Any]) -> None:
    row = re.search(rf"^\| `{name}` \|.*$", section(RUN_FILE, title), re.M)
    assert row
    for key, default in params.items():
        written = re.search(rf"`{key}` = (\[.*?\]|[\w.-]+)", row[0])
        assert written, f"{name}: {key}"
        expected = list(default) if isinstance(default, tuple) else default
        assert tomllib.loads(f"x = {written[1]}")["x"] == expected, f"{name}: {key}"


@pytest.mark.parametrize("name", METRICS)
def test_a_metrics_figures_and_keys_are_documented(name: str) -> None:
    text = section(RUN_FILE, "`[[evaluation.metrics]]`")
    row = re.search(rf"^\| `{name}` \|.*$", text, re.M)
    assert row
    keys = inspect.signature(METRICS[name]).parameters
    assert [key for key in (*keys, *METRICS[name].gives) if not has_code(row[0], key)] == []
    assert [key for key in keys if not re.search(rf"^\| `{key}` \|", text, re.M)] == []


REST = {
    "name": "a",
    "source": "dataset",
    "data": {"dataset": "digits"},
    "student": {"name": "linear"},
    "losses": [{"name": "cross_entropy"}],
    "train": {"batch_size": 1, "steps": 1},
}
"""What a fragment of a run file leaves out."""
TOML = blocks("toml")


def default_outputs(settings: RunSettings) -> dict[str, TargetSpec]:
    """The classes of each teacher of a run file."""
    classes = TargetSpec("logits", (5,), 5, CodecSpec(), default=True)
    return {target_name(teacher.name): classes for teacher in settings.teachers}


def named_outputs(settings: RunSettings) -> dict[str, TargetSpec]:
    """The outputs that its losses name, of features."""
    features = TargetSpec("features", (4, 8), 0, CodecSpec())
    names = [loss.against for loss in settings.losses if loss.against]
    return {
        target_name(teacher.name, name.rpartition(".")[2]): features for teacher in settings.teachers for name in names
    }


def network_of(settings: RunSettings) -> Network:
    if settings.student.name not in OF_TOKENS:
        return Network.of("image", (3, 16, 16), 5)
    inputs = tuple(InputField(name, (128,), "int64") for name in settings.student.inputs)
    return Network(inputs, 8192, (), 8192)


@pytest.mark.parametrize("place", TOML)
def test_a_written_run_file_loads(place: str, tmp_path: Path) -> None:
    document = tomllib.loads(TOML[place])
    if "name" in document:
        file = tmp_path / "run.toml"
        file.write_text(TOML[place], encoding="utf-8")
        settings = load_run(file)
    else:
        settings = run_settings(REST | document)
    fields = {loss.labels: Field((4,), "int64") for loss in settings.losses if loss.labels}
    peers = [peer.name for peer in settings.peers]
    resolve(settings, {**named_outputs(settings), **default_outputs(settings)}, fields=lambda: fields, peers=peers)
    build_schedule(settings.schedule, 10_000)
    view_spec(settings.data.view.name, settings.data.view.params)
    if ":" not in settings.student.name:
        build_optimizer(settings.optimizer, build_student(settings.student, network_of(settings), 0))


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_and_all_its_parameters_are_documented(name: str) -> None:
    row = re.search(rf"^\| `{name}` \|.*$", section(DATA, "Datasets"), re.M)
    assert row
    with pytest.raises(ConfigError, match="has no parameter 'zzz'") as refused:
        DATASETS[name]("", {"zzz": "1"})
    known = str(refused.value).partition(": choose one of ")[2].split(", ")
    assert [param for param in known if param and not has_code(row[0], param)] == []
    assert section(DATA, name).strip()


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_and_all_its_parameters_are_documented(name: str) -> None:
    row = re.search(rf"^\| `{name}` \|.*$", section(DATA, "Views"), re.M)
    assert row
    assert [param for param in VIEWS[name].defaults if not has_code(row[0], param)] == []


PYTHON = {
    re.search(r"^# (\S+\.py)$", text, re.M)[1]: text  # type: ignore[index]
    for text in blocks("python").values()
}
"""File name in its first line -> a program that the docs show."""


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules that the docs write, on the Python path."""
    for name, text in PYTHON.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_the_dataset_and_the_view_that_the_docs_write_work(my_package: None) -> None:
    dataset = open_dataset("my_package.datasets:waves?n=20")
    fetched = Fetcher(dataset, view_spec("my_package.views:masked", {"width": 6})).fetch(np.arange(20), 1)
    assert fetched.inputs["signal"].shape == (20, 1, 40)
    assert fetched.labels.tolist() == [0, 1] * 10
    assert ((fetched.inputs["signal"] == 0).sum(axis=(1, 2)) >= 6).all()


def test_the_view_that_chooses_positions_in_the_docs_works(my_package: None) -> None:
    dataset = ArrayDataset("none", {"tokens": np.full((30, 64), 7)}, np.zeros(30, int))
    fetched = Fetcher(dataset, view_spec("my_package.texts:masked", {"share": 0.3})).fetch(np.arange(30), 1)
    assert not fetched.faults
    assert fetched.inputs["masked"].sum(axis=1).max() == 20
    assert np.array_equal(fetched.inputs["tokens"] == 103, fetched.inputs["masked"] != 0)


def test_the_file_of_tokens_that_the_docs_write_is_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text_files(tmp_path / "books").joinpath("tokenizer.json").rename("tokenizer.json")
    exec(compile(PYTHON["token_file.py"], "token_file.py", "exec"), {})
    assert open_dataset("tokens:ids.npy?length=32&tokenizer=tokenizer.json").num_samples > 20


def test_the_student_that_the_docs_write_can_be_built(my_package: None) -> None:
    settings = run_settings({**REST, "student": {"name": "my_package.students:tiny", "width": 8}})
    assert build_student(settings.student, Network.of("image", (1, 8, 8), 10), 0) is not None


def test_the_metric_that_the_docs_write_measures(my_package: None) -> None:
    data = Fetcher(open_dataset("my_package.datasets:waves?n=20"), view_spec("none", {}))
    rows = np.tile(np.array([0.0, 1.0, 2.0], np.float32), (20, 1))
    metric = MetricSettings("my_package.metrics:TopK", params={"k": 2})
    found = evaluate(lambda inputs: rows[: len(inputs["signal"])], data, 7, metrics=[metric])
    assert found == {"num_samples": 20, "top2": 0.5}


def test_the_teacher_that_the_readme_exports_is_an_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.onnx_runtime import open_session

    monkeypatch.chdir(tmp_path)
    student = run_settings({**REST, "student": {"name": "cnn", "channels": [2]}}).student
    program = compile(PYTHON["export_teacher.py"], "export_teacher.py", "exec")
    exec(program, {"model": build_student(student, Network.of("image", (3, 160, 160), 5), 0)})
    session = open_session(tmp_path / "teacher.onnx")
    (logits,) = session.run(["logits"], {"image": np.zeros((3, 3, 160, 160), np.float32)})
    assert logits.shape == (3, 5)


# --- the rest ---------------------------------------------------------------------------------------------------------

NAMES = {
    **{f"codec {name}": ("docs/wire-format.md", name) for name in CODECS},
    **{f"schema {name}": ("docs/wire-format.md", name) for name in REGISTRY.fingerprints()},
    **{f"kind {name}": ("docs/cli.md", name) for name in KINDS},
    **{f"provider {name}": ("docs/cli.md", name) for name in PROVIDERS},
}


@pytest.mark.parametrize("what", NAMES)
def test_other_names_that_a_user_can_write_are_documented(what: str) -> None:
    page, name = NAMES[what]
    assert has_code(PAGES[page], name)


def test_every_dtype_of_a_column_is_documented() -> None:
    assert [name for name in DTYPES if name not in PAGES["docs/wire-format.md"]] == []


def test_every_written_codec_parses() -> None:
    texts = {
        text.replace("\\|", "|") for page in PAGES.values() for text in re.findall(r"`((?:topk|sampled):[^`]+)`", page)
    }
    assert texts
    for text in texts:
        assert str(CodecSpec.parse(text)).startswith(("topk:k=", "sampled:n="))


@pytest.mark.parametrize("name", sorted(_ALLOWED | set(_ALIASES)))
def test_every_kafka_property_is_documented(name: str) -> None:
    assert has_code(KAFKA, name.replace("_", "."))


def test_a_written_properties_file_loads(tmp_path: Path) -> None:
    (text,) = blocks("properties").values()
    certificate = tmp_path / "ca.pem"
    certificate.touch()
    file = tmp_path / "kafka.properties"
    file.write_text(re.sub(r"(?<=location=).*", str(certificate), text), encoding="utf-8")
    settings = KafkaSettings.load("127.0.0.1:1", file)
    assert settings.options["security_protocol"] == "SASL_SSL"
    assert settings.options["sasl_plain_username"] == "distillog"


def anchors(page: str) -> set[str]:
    """What headings can be linked to, the way GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_internal_links_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[page])):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page} links to {target}"


@pytest.mark.parametrize("page", [name for name in PAGES if name.startswith("docs/")])
def test_the_readme_links_to_every_page(page: str) -> None:
    assert f"]({page})" in PAGES["README.md"]


def test_a_dataset_is_one_word_everywhere() -> None:
    sources = [path for folder in (*PACKAGES, "tests", "examples", "benchmarks") for path in (ROOT / folder).rglob("*")]
    texts = {
        str(path): path.read_text(encoding="utf-8") for path in sources if path.suffix in {".py", ".toml", ".avsc"}
    }
    two_words = re.compile(r"\bdata[ \n#\"]+sets?\b", re.I)
    assert {name: two_words.findall(text) for name, text in (texts | PAGES).items() if two_words.search(text)} == {}
