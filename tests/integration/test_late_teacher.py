"""A teacher that is added when all is labelled: it labels the old orders, and joins the zip from the first on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import classifier
from support.processes import Distillog
from support.small_runs import run_file, weights
from support.streams import fetcher, num_orders, publish, stream_with_teacher
from support.written_labels import Labelling, write

from pipeline.create import add_teacher
from pipeline.streams import open_stream
from student_trainer.run.settings import load_run, run_settings
from teacher_service.models.declared import Declared
from teacher_service.models.describe import describe_model
from teacher_service.models.session import OnnxTeacher
from teacher_service.serve import TeachOptions, prepare_worker
from teacher_service.worker import WorkerOptions

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.mark.faults
@pytest.mark.short
def test_a_teacher_that_is_added_later_labels_the_old_orders_and_joins_the_zip_from_the_first_on(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    name, runs, settings = fresh_name("late"), tmp_path / "runs", distillog.settings
    first, second = classifier(tmp_path / "t.onnx"), classifier(tmp_path / "u.onnx", seed=1)
    stream = stream_with_teacher(settings, name, first, options={"partitions": 2})
    publish(settings, stream, list(range(num_orders(stream))))
    of_first = Labelling(stream, fetcher(), OnnxTeacher(first, stream.teacher("t"), "cpu", 1))
    write(settings, stream, map(of_first.record, range(num_orders(stream))))

    late = describe_model(second, "u", stream.manifest, fetcher(), Declared())
    add_teacher(settings, stream, late)
    options = TeachOptions(threads=1, worker=WorkerOptions("late", until_idle=True))
    assert prepare_worker(settings, name, second, options).run().orders == 41
    assert "41 of 41 orders are labelled" in distillog.call("verify", name, second, "--threads", 1).stdout

    def trained(run: str, *teachers: str) -> str:
        path = run_file(tmp_path, name, run)
        document = load_run(path).as_dict() | {"teachers": [{"name": teacher} for teacher in teachers]}
        document["losses"][0]["mean"] = "probabilities"
        path.write_text(run_settings(document).as_toml())
        assert distillog.call("runs", "start", path, "--folder", runs, "--quiet").exit_code == 0
        return weights(runs, run)

    assert open_stream(settings, name).teachers.keys() == {"t", "u"}
    both = trained("both", "t", "u")
    assert both != trained("one", "t")
    # The order in which they are named is no matter, and who was there first even less.
    assert trained("turned", "u", "t") == both
