from __future__ import annotations

import pytest
import recipe

from pipeline.sequence import Sequence
from student_trainer.run.settings import load_run, run_settings


@pytest.mark.parametrize("kind", recipe.KINDS)
def test_every_run_of_the_comparison_is_a_valid_run_file(kind: str):
    assert run_settings(recipe.student_run(kind, 1)).name == f"{kind}-1"


@pytest.mark.parametrize("kind", recipe.KINDS)
def test_all_students_share_network_optimizer_schedule_steps_and_seed(kind: str):
    settings, distilled = (run_settings(recipe.student_run(each, 2)) for each in (kind, "distilled"))
    for section in ("student", "optimizer", "schedule", "train"):
        assert getattr(settings, section) == getattr(distilled, section)


def test_the_baseline_learns_from_the_teachers_own_labelled_images_under_the_same_views():
    teacher, baseline = (run_settings(one).data for one in (recipe.teacher_run(), recipe.student_run("hard", 0)))
    for name in ("dataset", "view", "labelled", "label_seed", "only_labelled", "order_size"):
        assert getattr(baseline, name) == getattr(teacher, name)


@pytest.mark.parametrize("kind", ["distilled", "argmax"])
def test_students_of_the_teacher_see_no_label(kind: str):
    assert run_settings(recipe.student_run(kind, 0)).data.labelled == 0


@pytest.mark.parametrize("document", [recipe.teacher_run(), *(recipe.student_run(kind, 0) for kind in recipe.KINDS)])
def test_no_run_looks_at_the_test_images_by_itself(document: dict[str, object]):
    assert not run_settings(document).evaluation.dataset


def test_the_live_student_is_the_one_that_replays_repeat():
    live = load_run(recipe.HERE / "student.toml", recipe.live_overrides(3))
    replay = run_settings(recipe.student_run("distilled", 3))
    for section in ("name", "data", "student", "teachers", "losses", "optimizer", "schedule", "train", "evaluation"):
        assert getattr(live, section) == getattr(replay, section)


def test_the_stream_is_as_long_as_the_student_needs():
    train = run_settings(recipe.student_run("distilled", 0)).train
    stream = Sequence(1_297, recipe.ORDER_SIZE, recipe.EPOCHS, 0, recipe.PARTITIONS)
    assert train.steps * train.batch_size <= stream.num_samples * stream.epochs
