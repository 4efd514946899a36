"""`distillog runs export`: a run's student as ONNX files, in float32, int8 and float16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import json_option, print_json, print_table
from pipeline.cli.runs_options import FOLDER, NAME, PEER, VIEW, VIEW_PARAM, chosen_view, run_path

if TYPE_CHECKING:
    from student_trainer.fidelity import Scores
    from student_trainer.smaller import Smaller

_FILE = click.Path(dir_okay=False, path_type=Path)
_DYNAMIC = (
    "warning: {path}: a sample's outputs depend on the others of its batch, since dynamic int8 takes its ranges from "
    "that; such a file cannot teach"
)


@click.command()
@NAME
@click.option("--onnx", type=_FILE, help="Where to.  [default: student.onnx, or PEER.onnx, in its folder]")
@click.option(
    "--output", "outputs", metavar="NAME", multiple=True, help="An output that the file has (repeatable). [logits]"
)
@click.option("--safetensors", type=_FILE, help="Where its weights go, too.")
@PEER
@click.option("--projections", is_flag=True, help="With the layers of [[losses]]: in ONNX an output for each.")
@click.option("--opset", type=click.IntRange(13, 99), metavar="N", help="Of the files.  [default: PyTorch's choice]")
@click.option("--fixed-batch", type=click.IntRange(1, 1_000_000), metavar="N", help="The one batch that they take.")
@click.option("--int8", type=_FILE, metavar="FILE", help="Also with static int8, calibrated on the run's data.")
@click.option("--int8-dynamic", type=_FILE, metavar="FILE", help="Also with dynamic int8: for transformers, on CPUs.")
@click.option("--fp16", type=_FILE, metavar="FILE", help="Also in float16: for GPUs.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0.0, 100.0),
    default=1.0,
    show_default=True,
    help="Points of accuracy that those may lose; layers of --int8 stay in float32 for it.",
)
@click.option("--calibrate", metavar="URI", help="Calibrate --int8 on this dataset.  [default: the run's own]")
@click.option("--samples", type=click.IntRange(1, 1 << 24), default=512, show_default=True, help="To calibrate on.")
@click.option("--seed", type=click.IntRange(0, (1 << 63) - 1), default=0, show_default=True, help="Draws those.")
@click.option(
    "--weight-bits",
    type=click.Choice(["auto", "7", "8"]),
    default="auto",
    show_default=True,
    help="Of int8: CPUs without VNNI need 7. auto: as this one.",
)
@click.option("--dataset", metavar="URI", help="Compare and evaluate on this dataset.  [default: the run file's]")
@VIEW
@VIEW_PARAM
@FOLDER
@json_option
def export(
    name: str,
    onnx: Path | None,
    outputs: tuple[str, ...],
    safetensors: Path | None,
    peer: str,
    projections: bool,
    opset: int | None,
    fixed_batch: int | None,
    int8: Path | None,
    int8_dynamic: Path | None,
    fp16: Path | None,
    max_drop: float,
    calibrate: str | None,
    samples: int,
    seed: int,
    weight_bits: str,
    dataset: str | None,
    view: str | None,
    view_params: tuple[str, ...],
    folder: Path,
    as_json: bool,
) -> None:
    """Export the newest checkpoint of run NAME to one ONNX file, checked against PyTorch on real inputs."""
    from student_trainer.smaller import Asked, export_smaller

    files = {"int8": int8, "int8_dynamic": int8_dynamic, "fp16": fp16}
    asked = {key: file for key, file in files.items() if file is not None}
    if calibrate is not None and int8 is None:
        raise click.UsageError("--calibrate is for --int8")
    if max_drop != max_drop:
        raise click.UsageError("--max-drop nan: no number of points")
    exported, before, smaller = export_smaller(
        run_path(folder, name),
        Asked(asked, samples, seed, max_drop, weight_bits, fixed_batch),
        onnx,
        dataset,
        chosen_view(view, view_params),
        calibrate,
        lambda text: click.echo(text, err=True),
        outputs=outputs,
        safetensors=safetensors,
        with_projections=projections,
        peer=peer,
        opset=opset,
    )
    if int8_dynamic is not None:
        click.echo(_DYNAMIC.format(path=int8_dynamic), err=True)
    if as_json:
        from dataclasses import asdict

        of_float = None if before is None else asdict(before)
        found = {**exported, "path": str(exported["path"]), "safetensors": safetensors and str(safetensors)}
        print_json({**found, "scores": of_float, "smaller": [each.as_dict() for each in smaller]})
        return
    call = f"{fixed_batch} samples" if fixed_batch else "one sample"
    click.echo(
        f"{exported['path']}: {exported['file_bytes']:,} bytes, {exported['parameters']:,} parameters, differs from "
        f"PyTorch by at most {exported['difference']:.1e} of an output's range; {call} {exported['p50_ms']:.3f} ms "
        f"(p95 {exported['p95_ms']:.3f}), {exported['samples_per_s']:,.0f} samples/s on one core"
        + (f"; weights in {safetensors}" if safetensors else "")
    )
    if before is not None:
        _print_smaller(exported, before, smaller)


def _print_smaller(exported: dict[str, Any], before: Scores, smaller: list[Smaller]) -> None:
    click.echo(f"\non {before.num_samples} samples:\n")
    head = ("FILE", "NUMBERS", "BYTES", "OF FLOAT", "ACCURACY", "AGREEMENT", "ERROR", "P50 MS", "SAMPLES/S")
    size = exported["file_bytes"]
    first = (exported["path"], "float32", size, "1", _share(before.accuracy), "-", "-")
    rows: list[tuple[object, ...]] = [(*first, f"{exported['p50_ms']:.3g}", round(exported["samples_per_s"]))]
    for each in smaller:
        scores = each.scores
        shares = (_share(scores.accuracy), _share(scores.agreement), f"{scores.error:.2g}")
        ratio = f"{each.file_bytes / size:.3g}"
        speed = (f"{each.p50_ms:.3g}", round(each.samples_per_s))
        rows.append((each.path, each.kind, each.file_bytes, ratio, *shares, *speed))
    print_table([head, *rows])
    for each in smaller:
        if each.in_float:
            click.echo(f"\n{each.path}: {each.layers} layers in {each.kind}, in float32: {', '.join(each.in_float)}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
