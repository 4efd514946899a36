"""Students of each codec's labels, which lie in memory: `distillog codecs --train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.models import classifier
from support.more_outputs import with_outputs

from pipeline.cli import main
from schemas.codecs import CodecSpec, TopK
from schemas.records import SoftTargets
from student_trainer.codec_runs import learn, recipe
from student_trainer.sources.base import Cursor
from student_trainer.sources.memory import MemorySource
from teacher_service.models.stored_codecs import TEACHER, StoredEpoch, store_epoch

TRAIN, TEST = "digits?split=train", "digits?split=test"
CODECS = [CodecSpec.parse(text) for text in ("float32", "topk:k=3,bits=8,temperatures=2", "sampled:n=5")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def stored(model: Path) -> StoredEpoch:
    return store_epoch(model, TRAIN, CODECS, num_samples=300)


def test_the_orders_are_those_records_with_the_labels_of_their_samples(stored: StoredEpoch) -> None:
    source = MemorySource(stored.fetcher, stored.sequence, stored.teacher, stored.records, ["codec1"], passes=2)
    orders = list(source.orders(Cursor.start()))
    assert [(each.pass_number, each.sequence) for each in orders] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [len(each.labels) for each in orders] == [256, 44, 256, 44]
    ids = np.concatenate([each.sample_ids for each in orders[:2]])
    assert len(set(ids.tolist())) == 300
    for order, raw in zip(orders, stored.records, strict=False):
        record = SoftTargets.decode(raw, "here")
        assert np.array_equal(order.sample_ids, record.sample_ids)
        assert np.array_equal(order.labels, stored.fetcher.dataset.labels(order.sample_ids))
        (rows,) = order.targets.values()
        assert isinstance(rows, TopK)
        stands = record.output("codec1").values()
        assert isinstance(stands, TopK)
        assert np.array_equal(rows.indices, stands.indices)
    assert next(iter(source.orders(Cursor(1, 1, 0)))).pass_number == 1


def test_each_codec_has_students_of_its_own_labels_and_each_seed_one(stored: StoredEpoch) -> None:
    changes = ("train.passes=3", "train.batch_size=50", "student.hidden=[8]")

    def learned(seeds: range) -> Any:
        settings = {
            name: recipe(TEACHER, name, spec, 2.0, "mlp", TEST, changes) for name, spec in stored.outputs.items()
        }
        return learn(stored.fetcher, stored.sequence, stored.teacher, stored.records, settings, seeds)

    found, again = learned(range(2)), learned(range(1, 2))
    assert {name: (len(each.accuracy), len(each.nll)) for name, each in found.items()} == dict.fromkeys(found, (2, 2))
    assert len({each.nll for each in found.values()}) == 3
    for name, each in again.items():
        assert (each.accuracy[0], each.nll[0]) == (found[name].accuracy[1], found[name].nll[1])
        assert found[name].nll[0] != found[name].nll[1]
        assert found[name].spread(found[name].nll)[1] > 0


def test_the_command_prints_what_students_came_to_and_what_was_not_trained(model: Path) -> None:
    arguments = ["codecs", str(model), "--dataset", TRAIN, "--temperature", "2", "--train", "--evaluation", TEST]
    arguments += ["--seeds", "1", "--train-samples", "200", "--set", "train.passes=1", "--samples", "50"]
    arguments += [word for text in ("int8", "topk:k=3", "sampled:n=9") for word in ("--codec", text)]
    said = CliRunner().invoke(main, arguments)
    assert said.exit_code == 0, said.output
    header, *rows = [line.split() for line in said.stdout.splitlines()[1:5]]
    assert header[-2:] == ["accuracy", "NLL"]
    assert [row[-2:] for row in rows if row[0].startswith("topk")] == [["-", "-"]]
    figures = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)["outputs"][0]["codecs"]
    trained = {each["codec"]: each["students"] for each in figures}
    assert trained["topk:k=3,temperatures=1"] is None
    assert len(trained["int8"]["accuracy"]) == 1
    assert f"{trained['sampled:n=9']['nll'][0]:.4f}" in said.stdout


def test_what_cannot_be_trained_is_one_line(model: Path, tmp_path: Path) -> None:
    hidden = with_outputs(classifier(tmp_path / "m.onnx"), "hidden")
    train = ("--train", "--evaluation", TEST)
    cases = [
        (model, ("--train",), "--train and --evaluation URI go together"),
        (model, ("--train", "--evaluation", "digit"), "digit"),
        (model, (*train, "--set", "losses.0.weight=2"), "students differ by their labels and seeds alone"),
        (model, (*train, "--set", "train.passses=2"), "passses"),
        (model, (*train, "--student", "mpl"), "mpl"),
        (model, (*train, "--temperature", "2", "--codec", "topk:k=3"), "none of these codecs serves --temperature 2"),
        (hidden, (*train, "--output", "h=hidden:features"), "gives a sample one row of classes"),
    ]
    for path, options, words in cases:
        refused = CliRunner().invoke(main, ["codecs", str(path), "--dataset", TRAIN, "--samples", "20", *options])
        assert refused.exit_code != 0
        assert words in refused.output + str(refused.exception), options
