"""A metric of a user's own: what it is given, and its faults as one line each."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.datasets.base import ArrayDataset
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.errors import ConfigError
from student_trainer.evaluate import Inputs, evaluate
from student_trainer.run.metric_settings import MetricSettings
from student_trainer.scores.metrics import Metrics

ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)
DATA = Fetcher(ArrayDataset("data", {"x": ROWS}, np.array([0, 1, -1, 1, 0, 1]), (), 2), view_spec("none", {}))


def student(inputs: Inputs) -> dict[str, np.ndarray]:
    return {"logits": inputs["x"], "twice": 2 * inputs["x"]}


def own(what: str, key: str = "", **params: object) -> MetricSettings:
    return MetricSettings(f"support.metrics:{what}", key, params)


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_it_sees_outputs_inputs_and_labels_and_gives_its_figures(batch_size: int) -> None:
    found = evaluate(student, DATA, batch_size, metrics=[own("Spread", of="twice", factor=0.5)])
    assert found == {"num_samples": 6, "spread": 11.0, "labelled": 5}
    assert type(found["spread"]) is float


def test_several_of_one_class_stand_beside_ours() -> None:
    chosen = [MetricSettings("classes"), own("Spread", of="twice"), own("Spread", "plain", of="logits")]
    found = evaluate(student, DATA, 4, metrics=chosen)
    assert (found["spread"], found["plain.spread"], found["num_labelled"]) == (22.0, 11.0, 5)
    with pytest.raises(ConfigError, match=r"support.metrics:Spread gives 'spread', which is taken: give it a `key`"):
        evaluate(student, DATA, 4, metrics=[own("Spread", of="twice"), own("Spread", of="logits")])


FAULTS = {
    "made": "metric support.metrics:Faulty: it raised not today",
    "update": r"metric support.metrics:Faulty: update\(\) raised KeyError: 'logits'",
    "exit": r"metric support.metrics:Faulty: update\(\) raised SystemExit: 0, which ends a process: raise an E",
    "write": r"metric support.metrics:Faulty: update\(\) raised .*read-only",
    "compute": r"metric support.metrics:Faulty: compute\(\) raised ZeroDivisionError",
    "list": r"compute\(\) gave a list; it has to give a dict of numbers",
    "nan": r"compute\(\) gave 'nan' for 'area'; figures are finite numbers",
    "endless": r"compute\(\) gave '1000.*' for 'area'; figures are finite",
    "text": r"compute\(\) gave '1.0' for 'area'; figures are",
    "bool": r"compute\(\) gave 'True' for 'area'; figures are",
    "number": r"compute\(\) gave the name 3; names are texts",
    "lines": r"compute\(\) gave the name 'a\\nb'; names are",
    "taken": "gives 'num_samples', which is taken",
    "other's": "gives 'accuracy', which is taken",
    "chance": "gives 'num_commonest', which is taken",
}


@pytest.mark.parametrize("how", FAULTS)
def test_its_faults_are_one_line(how: str) -> None:
    with pytest.raises(ConfigError, match=FAULTS[how]) as refused:
        evaluate(student, DATA, 4, metrics=[MetricSettings("classes"), own("Faulty", how=how)])
    assert str(refused.value).startswith("metric support.metrics:Faulty")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("support.metrics:Spred", "cannot be imported"),
        ("support.no_metrics:Spread", "no module 'support.no_metrics'"),
        ("support.metrics:__doc__", "is not callable"),
        ("support.metrics:Unfinished", r"is a Unfinished without compute\(\)"),
        ("support.metrics:without_compute", r"is a Unfinished without compute\(\)"),
        ("support.metrics:Spread", "it raised TypeError: .*'of'"),
    ],
)
def test_what_is_no_metric_is_refused(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Metrics([MetricSettings(name)])
