"""`distillog codecs`: what each codec keeps of a teacher's own outputs, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.model_options import model_options, of_outputs
from pipeline.cli.options import json_option, print_json, view_param

if TYPE_CHECKING:
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
    as_json: bool,
) -> None:
    """Measure what codecs do to the outputs of the ONNX file MODEL; needs no Kafka."""
    from teacher_service.models.codec_table import codec_table

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
    if as_json:
        print_json({"model": str(model), "dataset": dataset, "outputs": [_as_dict(one) for one in found]})
        return
    for one in found:
        rows = "" if one.num_rows == one.num_samples else f", {one.num_rows} positions of them"
        click.echo(f"{one.output}: {one.num_samples} samples{rows}")
        _print([_header(one.codecs[0]), *map(_row, one.codecs)])


def _as_dict(one: OutputFigures) -> dict[str, Any]:
    fields = ("bytes_per_sample", "encoded_per_s", "decoded_per_s", "top1", "tail_error", "error")
    return {
        "output": one.output.name,
        "samples": one.num_samples,
        "rows": one.num_rows,
        "codecs": [
            {"codec": str(each.codec)}
            | {field: getattr(each, field) for field in fields}
            | {"kl": {f"{temperature:g}": kl for temperature, kl in each.kl.items()}}
            for each in one.codecs
        ],
    }


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
