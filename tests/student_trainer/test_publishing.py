"""When a run's student is a generation, and what becomes of it; without Kafka."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.moving import images, student_model
from support.streams import fetcher, teacher_record
from train_runs import digits_run

from pipeline.captured.storage import read_file
from schemas.errors import BrokerUnavailable, CannotWrite, ConfigError, ManifestMismatch, Starved
from schemas.generation import follows
from schemas.records import Generation, Lineage, Publisher, TeacherInput, TeacherOutput
from student_trainer.learning.students import Network, build_student
from student_trainer.learning.weights import tensors_sha256
from student_trainer.publishing.exporting import Exporter
from student_trainer.publishing.form import refuse_unlike
from student_trainer.publishing.publishing import Publishing
from student_trainer.run.edits import edits
from student_trainer.run.publish_settings import PublishSettings
from student_trainer.run.settings import RunSettings, StarveSettings, run_settings
from student_trainer.sources.base import Cursor

NETWORK = Network.of("image", (1, 8, 8), 10)
EVERY = 5
INPUTS = (TeacherInput("image", "image", "float32", "nchw", 1.0, ()),)
OUTPUTS = (TeacherOutput.of_classes("logits", "logits", 10),)
TEACHER = teacher_record(inputs=INPUTS, outputs=OUTPUTS)


class Book:
    """A teacher's records, which follow each other as in the manifest's topic; Kafka may be away for some calls."""

    writes = True

    def __init__(self) -> None:
        publisher = Publisher(TEACHER.stream_id, "t", "r", "id", EVERY)
        self.found = Lineage(TEACHER, publisher)
        self.away = 0

    def lineage(self) -> Lineage:
        if self.away:
            self.away -= 1
            raise BrokerUnavailable("no answer")
        return self.found

    def refuse_unmovable(self) -> None: ...

    def claim(self, publisher: Publisher) -> Lineage:
        raise NotImplementedError

    def publish(self, generation: Generation) -> None:
        assert follows(self.found.publisher, self.found.newest, generation)
        self.found = replace(self.found, generations=(*self.found.generations, generation))


class Trainee:
    """A student that never learns; its peers."""

    def __init__(self, seed: int = 0) -> None:
        model = build_student(digits_run().student, NETWORK, seed)
        average = {name: each + 1 for name, each in model.state_dict().items()}
        self.each: dict[str, Any] = {"student": self, "other": self}
        self.weights, self.average = model.state_dict(), average

    def state(self) -> dict[str, Any]:
        return {"model": self.weights, "average": self.average}


def publishing(
    book: Book, folder: Path | str, done: int = 0, exports: bool = True, starve: float = 60.0, **settings: Any
) -> Publishing:
    publish = PublishSettings("t", EVERY, str(folder), **{"weights": "trained"} | settings)
    exporter = Exporter(digits_run(), NETWORK, TEACHER, {"image": images()}, {}) if exports else None
    starving = StarveSettings(starve / 2, starve)
    return Publishing(publish, starving, book, book.found, exporter, "id", 23, done)


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("cursor", "due"),
    [((0, 0, 0), 0), ((0, 4, 31), 0), ((0, 5, 0), 1), ((0, 9, 30), 1), ((0, 22, 1), 4), ((1, 0, 0), 4), ((2, 3, 1), 4)],
)
def test_a_generation_is_due_behind_the_rows_of_its_orders_in_the_first_pass(
    cursor: tuple[int, int, int], due: int, tmp_path: Path
) -> None:
    assert publishing(Book(), tmp_path, exports=False).due(Cursor(*cursor)) == due


def test_the_last_generation_leaves_an_order_that_it_may_label(tmp_path: Path) -> None:
    made = publishing(Book(), tmp_path, exports=False)
    made._num_orders = 20
    assert (made.due(Cursor(0, 19, 0)), made.due(Cursor(1, 0, 0))) == (3, 3)


def test_what_is_published_is_a_whole_file_of_the_weights_and_the_record_says_its_hashes(tmp_path: Path) -> None:
    book, trainee = Book(), Trainee()
    made = publishing(book, tmp_path)
    made.reach(7, Cursor(0, 11, 3), trainee, never)  # a batch that is wider than a generation's orders
    assert made.came_of() == {"published": [1, 2], "compared": [], "missing": []}
    first, second = book.found.generations
    assert (first.number, first.sequence, first.step, second.sequence) == (1, 5, 7, 10)
    assert first.weights_sha256 == second.weights_sha256 == tensors_sha256(trainee.weights)
    assert Path(first.model).name == f"t-000001-{first.sha256[:12]}.onnx"
    assert sorted(map(str, tmp_path.iterdir())) == [first.model, second.model]
    assert made.done == 2
    # Who comes by again, at another step or another time, finds what is there, and writes nothing.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = publishing(book, tmp_path)
    again.reach(7, Cursor(0, 11, 3), trainee, never)
    assert again.came_of() == {"published": [], "compared": [1, 2], "missing": []}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_the_average_of_the_weights_is_published_where_there_is_one_and_nobody_says_otherwise(tmp_path: Path) -> None:
    book, trainee = Book(), Trainee()
    publishing(book, tmp_path, weights="").reach(7, Cursor(0, 5, 0), trainee, never)
    assert book.found.generations[0].weights_sha256 == tensors_sha256(trainee.average)


@pytest.mark.parametrize("exports", [True, False])
def test_other_weights_than_those_of_a_generation_that_is_there_end_the_run(exports: bool, tmp_path: Path) -> None:
    book = Book()
    publishing(book, tmp_path).reach(7, Cursor(0, 5, 0), Trainee(), never)
    with pytest.raises(ManifestMismatch, match=r"generation 1 of teacher 't' has the weights .* nothing was published"):
        publishing(book, tmp_path, exports=exports).reach(7, Cursor(0, 5, 0), Trainee(1), never)
    assert book.found.newest == 1


def test_a_run_that_compares_alone_writes_nothing_and_says_what_is_missing(tmp_path: Path) -> None:
    book, made = Book(), publishing(Book(), tmp_path / "none", exports=False)
    made.reach(7, Cursor(0, 12, 0), Trainee(), never)
    assert made.came_of() == {"published": [], "compared": [], "missing": [1, 2]}
    assert (made.publishes, made.done, book.found.newest) == (False, 2, 0)
    assert not (tmp_path / "none").exists()


def test_a_generation_behind_one_that_was_never_published_is_not_published(tmp_path: Path) -> None:
    book = Book()
    made = publishing(book, tmp_path, done=1)  # as a run that came by the first one from captured files
    made.reach(7, Cursor(0, 11, 0), Trainee(), never)
    assert made.came_of()["missing"] == [2]
    assert book.found.newest == 0


def test_kafka_that_is_away_is_waited_for_and_in_the_end_the_run_starves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student_trainer.publishing.publishing._PAUSE", 0.01)
    book = Book()
    book.away = 3
    made = publishing(book, tmp_path)
    made.reach(7, Cursor(0, 5, 0), Trainee(), never)
    assert made.came_of()["published"] == [1]
    book.away = 10**9
    with pytest.raises(Starved, match=r"generation 2 waits for Kafka .* resume the run"):
        publishing(book, tmp_path, done=1, starve=0.1).reach(9, Cursor(0, 10, 0), Trainee(), never)
    assert book.found.newest == 1


def test_a_run_that_is_stopped_while_it_waits_leaves_the_generation_due(tmp_path: Path) -> None:
    book = Book()
    book.away = 10**9
    made, begun = publishing(book, tmp_path), time.monotonic()
    made.reach(7, Cursor(0, 5, 0), Trainee(), lambda: time.monotonic() - begun > 0.1)
    assert (made.done, made.came_of()["published"]) == (0, [])


def test_an_export_leaves_chance_and_the_student_alone(tmp_path: Path) -> None:
    exporter, trainee = Exporter(digits_run(), NETWORK, TEACHER, {"image": images()}, {}), Trainee()
    before, chance = tensors_sha256(trainee.weights), torch.get_rng_state()
    first, second = (exporter.export(trainee.weights, tmp_path) for _ in range(2))
    assert tensors_sha256(trainee.weights) == before
    assert torch.equal(torch.get_rng_state(), chance)
    assert first == second  # equal weights give equal files


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"inputs": (replace(INPUTS[0], input="x"),)}, "it takes 'x', and the student 'image'"),
    "normalised": ({"inputs": (replace(INPUTS[0], mean=(0.5,)),)}, "it is not fed the view as it is"),
    "dtype": ({"inputs": (replace(INPUTS[0], dtype="float64"),)}, "'image' is float64, and the student's float32"),
    "no output": ({"outputs": (replace(OUTPUTS[0], output="y"),)}, "its output 'logits' is 'y' in ONNX"),
    "classes": ({"outputs": (TeacherOutput.of_classes("logits", "logits", 7),)}, "has rows of [7]"),
    "kind": ({"outputs": (replace(OUTPUTS[0], kind="probabilities"),)}, "its rows do not sum to 1"),
    "class map": ({"outputs": (replace(OUTPUTS[0], class_map=tuple(range(9, -1, -1))),)}, "a class map"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_student_that_is_not_fed_or_read_as_its_teacher_is_refused_by_name(name: str, tmp_path: Path) -> None:
    changes, words = OTHERS[name]
    file = student_model(tmp_path / "s.onnx").read_bytes()
    samples = fetcher().fetch(np.arange(8), 0).inputs
    refuse_unlike(TEACHER, file, samples)
    with pytest.raises(ConfigError) as caught:
        refuse_unlike(replace(TEACHER, **changes), file, samples)
    assert words in str(caught.value)
    assert str(caught.value).startswith("[publish] the student cannot be a generation of teacher 't'")


def settings(**publish: Any) -> dict[str, Any]:
    return {
        "name": "r",
        "data": {"stream": "s"},
        "student": {"name": "mlp"},
        "teachers": [{"name": "t"}],
        "losses": [{"name": "forward_kl"}],
        "train": {"batch_size": 8},
        "publish": {"teacher": "t", "every": 10, "to": "generations"} | publish,
    }


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "every": ({"every": 0}, "every must be at least 1, is 0"),
    "terminal": ({"to": "/x/\x1b[31m"}, r"to '/x/\x1b[31m' has characters that cannot be printed"),
    "to": ({"to": ""}, "give a folder, or a URL"),
    "secret": ({"to": "s3://key:secret@bucket/x"}, "the URL of the generations has credentials"),
    "weights": ({"weights": "trained_"}, "weights 'trained_' is unknown"),
    "average": ({"weights": "average"}, "needs [train] ema"),
    "peer": ({"peer": "wide"}, "[publish] peer 'wide' is unknown"),
    "name": ({"teacher": "a b"}, "teacher"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_of_publishing_that_do_not_fit_are_refused(name: str) -> None:
    publish, words = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        run_settings(settings(**publish))
    assert words in str(caught.value)
    assert "secret" not in str(caught.value).replace("credentials", "")


def test_a_dataset_alone_has_nobody_to_publish_for_and_an_age_is_no_negative_number() -> None:
    alone = settings() | {"source": "dataset", "teachers": [], "data": {"dataset": "digits"}}
    alone["train"] = {"batch_size": 8, "steps": 1}
    alone["losses"] = [{"name": "cross_entropy"}]
    with pytest.raises(ConfigError, match='needs source = "stream"'):
        run_settings(alone)
    with pytest.raises(ConfigError, match="max_age must not be negative, is -1"):
        run_settings(settings() | {"teachers": [{"name": "t", "max_age": -1}]})


def test_a_resume_may_write_its_generations_elsewhere_and_may_change_nothing_else_of_them() -> None:
    before = run_settings(settings()).as_dict()
    changes: dict[str, Callable[[], dict[str, Any]]] = {
        "to": lambda: settings(to="elsewhere"),
        "every": lambda: settings(every=11),
        "teacher": lambda: settings(teacher="u"),
        "weights": lambda: settings(weights="trained"),
    }
    allowed = {
        key: [each.allowed for each in edits(before, run_settings(made()).as_dict())] for key, made in changes.items()
    }
    assert allowed == {"to": [True], "every": [False], "teacher": [False], "weights": [False]}
    without = settings()
    del without["publish"]
    plain: RunSettings = run_settings(without)
    assert not any(each.allowed for each in edits(before, plain.as_dict()))
    assert not any(each.allowed for each in edits(plain.as_dict(), before))
    placed = run_settings(settings()).placed().publish
    assert placed is not None
    assert Path(placed.to).is_absolute()


def test_files_go_behind_a_url_as_into_a_folder_and_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    book = Book()
    made = publishing(book, "memory://published/of-this")
    made.reach(7, Cursor(0, 5, 0), Trainee(), never)
    (generation,) = book.found.generations
    assert generation.model.startswith("memory://published/of-this/t-000001-")
    content = read_file(generation.model)
    assert hashlib.sha256(content).hexdigest() == generation.sha256
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match=r"cannot be written"):
        publishing(Book(), tmp_path / "file").reach(7, Cursor(0, 5, 0), Trainee(), never)
    with pytest.raises(ConfigError, match=r"no such file"):
        read_file(str(tmp_path / "none.onnx"))
