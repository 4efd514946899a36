"""`distillog codecs`: what each codec keeps of a teacher's own outputs, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.codecs_train import Students
from pipeline.cli.model_options import model_options, of_outputs
from pipeline.cli.options import json_option, print_json, view_param

if TYPE_CHECKING:
    from student_trainer.codec_runs import Learned
    from teacher_service.models.codec_table import CodecFigures, OutputFigures
    from teacher_service.models.declared import Declared


@click.command()
@click.argument("model", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--dataset", required=True, metavar="URI", help="Dataset, such as digits?split=train or npy:/data/x.")
@click.option("--view", default="none", show_default=True, help="Augmentation that the samples are seen under.")
@click.option("--view-param", "view_params", metavar="NAME=VALUE", multiple=True, help="Its parameters (repeatable).")
@model_options
@click.option(
    "--positions",
    metavar="NAME=FIELD",
    multiple=True,
    help="Take an output at the positions where FIELD of the view is not 0 (repeatable).  [default: all of it]",
)
@click.option("--codec", "codecs", metavar="CODEC", multiple=True, help="A codec to try (repeatable).  [default: each]")
@click.option(
    "--temperature",
    type=click.FloatRange(1e-3, 1e3),
    multiple=True,
    help="Compare soft targets at it (repeatable).  [default: 1]",
)
@click.option("--samples", type=click.IntRange(min=1), default=256, show_default=True, help="Samples to look at.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the views.")
@click.option("--train", is_flag=True, help="Train students on each codec's labels, too, and say how good they become.")
@click.option("--evaluation", metavar="URI", help="With --train: dataset that students are evaluated on.")
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Students of each codec.")
@click.option("--student", default="mlp", show_default=True, help="Name of a student, or module:function.")
@click.option(
    "--train-samples",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Samples to learn from, at most.",
)
@click.option(
    "--set",
    "assignments",
    metavar="NAME=VALUE",
    multiple=True,
    help="Change how students learn: train.passes=20, student.hidden=[128] (repeatable).",
)
@json_option
def codecs(
    model: Path,
    dataset: str,
    view: str,
    view_params: tuple[str, ...],
    declared: Declared,
    positions: tuple[str, ...],
    codecs: tuple[str, ...],
    temperature: tuple[float, ...],
    samples: int,
    seed: int,
    train: bool,
    evaluation: str | None,
    seeds: int,
    student: str,
    train_samples: int,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure what codecs do to the outputs of the ONNX file MODEL; needs no Kafka."""
    from teacher_service.models.codec_table import codec_table

    if train != (evaluation is not None):
        raise click.UsageError("--train and --evaluation URI go together: students are evaluated on data of their own")
    declared = of_outputs(declared, "--positions", "FIELD", positions, lambda text: {"positions": text})
    found = codec_table(
        model,
        dataset,
        declared,
        view=view,
        view_params=dict(map(view_param, view_params)),
        codecs=codecs,
        temperatures=temperature or (1.0,),
        num_samples=samples,
        seed=seed,
    )
    students = Students(evaluation or "", student, seeds, train_samples, assignments)
    learned: dict[str, dict[str, Learned]] = {}
    if train:
        seen = (view, dict(map(view_param, view_params)))
        learned = students.learn(model, dataset, declared, found, seen, (temperature or (1.0,))[0], seed)
    if as_json:
        outputs = [_as_dict(one, learned.get(one.output.name, {})) for one in found]
        print_json({"model": str(model), "dataset": dataset, "outputs": outputs})
        return
    for one in found:
        rows = "" if one.num_rows == one.num_samples else f", {one.num_rows} positions of them"
        click.echo(f"{one.output}: {one.num_samples} samples{rows}")
        of_students = learned.get(one.output.name, {})
        header = [*_header(one.codecs[0]), *(("accuracy", "NLL") if of_students else ())]
        _print([header, *(_row(each) + _of_students(of_students, each) for each in one.codecs)])
        if of_students:
            click.echo(f"  accuracy and NLL: {students}")


def _as_dict(one: OutputFigures, learned: dict[str, Learned]) -> dict[str, Any]:
    fields = ("bytes_per_sample", "encoded_per_s", "decoded_per_s", "top1", "tail_error", "error")
    return {
        "output": one.output.name,
        "samples": one.num_samples,
        "rows": one.num_rows,
        "codecs": [
            {"codec": str(each.codec)}
            | {field: getattr(each, field) for field in fields}
            | {"kl": {f"{temperature:g}": kl for temperature, kl in each.kl.items()}}
            | ({"students": _students_as_dict(learned.get(str(each.codec)))} if learned else {})
            for each in one.codecs
        ],
    }


def _students_as_dict(learned: Learned | None) -> dict[str, Any] | None:
    """Return the figures of each seed's; None where none was trained."""
    return None if learned is None else {"accuracy": learned.accuracy, "nll": learned.nll}


def _of_students(learned: dict[str, Learned], one: CodecFigures) -> list[str]:
    if not learned:
        return []
    if (found := learned.get(str(one.codec))) is None:
        return ["-", "-"]
    accuracy, nll = found.spread(found.accuracy), found.spread(found.nll)
    return [f"{accuracy[0]:.2%} ± {accuracy[1]:.2%}", f"{nll[0]:.4f} ± {nll[1]:.4f}"]


def _header(first: CodecFigures) -> list[str]:
    measured = [f"KL at T={temperature:g}" for temperature in first.kl]
    measured += ["error"] if first.error is not None else ["top-1", "tail error"]
    return ["codec", "bytes/sample", "encoded/s", "decoded/s", *measured]


def _row(one: CodecFigures) -> list[str]:
    costs = [f"{one.bytes_per_sample:,.1f}", f"{one.encoded_per_s:,.0f}", f"{one.decoded_per_s:,.0f}"]
    measured = [_small(kl) for kl in one.kl.values()]
    top1 = "-" if one.top1 is None else f"{one.top1:.1%}"
    measured += [_small(one.error)] if one.error is not None else [top1, _small(one.tail_error)]
    return [str(one.codec), *costs, *measured]


def _small(number: float | None) -> str:
    return "-" if number is None else f"{number:.1e}"


def _print(rows: list[list[str]]) -> None:
    """Print columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        click.echo("  " + "  ".join(cells).rstrip())
