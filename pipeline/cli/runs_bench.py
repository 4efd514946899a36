"""`distillog runs bench`: how fast students and other ONNX files are, side by side, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import Seconds, json_option, print_json, print_table, quiet_option
from pipeline.cli.runs_options import FOLDER, VIEW, VIEW_PARAM, chosen_view, run_path
from pipeline.limits import MAX_THREADS

if TYPE_CHECKING:
    from pipeline.bench.figures import Configuration, Model
    from schemas.records import ViewSpec

_TIMED = (
    "session.run alone, inputs ready in memory; medians over the rounds of each round's percentiles, "
    "least and most beside them"
)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODELS")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1_000_000),
    multiple=True,
    default=(1, 64),
    show_default=True,
    help="Samples of one call (repeatable).",
)
@click.option(
    "--threads",
    type=click.IntRange(0, MAX_THREADS),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Of one call; 0: all cores (repeatable).",
)
@click.option(
    "--provider", multiple=True, default=("cpu",), show_default=True, help="ONNX execution provider (repeatable)."
)
@click.option(
    "--size", metavar="NAME=N", multiple=True, help="Size of a free dimension of a MODEL.onnx (repeatable): tokens=128."
)
@click.option(
    "--price-per-hour",
    type=click.FloatRange(0.0),
    metavar="PRICE",
    help="Of the machine, in any currency: gives the cost of a million samples.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Each in a fresh process.")
@click.option(
    "--seconds", type=Seconds(0.001), default=1.0, show_default=True, help="Of timed calls in each round, about."
)
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw latency and throughput by batch size into this file.",
)
@click.option("--dataset", metavar="URI", help="Samples for the runs' students.  [default: each run file's]")
@VIEW
@VIEW_PARAM
@FOLDER
@json_option
@quiet_option
def bench(
    models: tuple[str, ...],
    batch_size: tuple[int, ...],
    threads: tuple[int, ...],
    provider: tuple[str, ...],
    size: tuple[str, ...],
    price_per_hour: float | None,
    rounds: int,
    seconds: float,
    svg: Path | None,
    dataset: str | None,
    view: str | None,
    view_params: tuple[str, ...],
    folder: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure how fast MODELS are, what memory they take and what they cost: names of runs, and ONNX files.

    The second and all others are compared with the first.
    """
    from pipeline.bench.figures import as_curves, as_dicts
    from pipeline.bench.rounds import configurations, measure
    from pipeline.progress import Progress

    if len(set(models)) < len(models):
        raise click.UsageError("a model is given twice")
    if not math.isfinite(price_per_hour or 0.0):
        raise click.UsageError(f"--price-per-hour {price_per_hour}: no price")
    if svg is not None:
        from student_trainer.run.targets import refuse_targets

        refuse_targets(("SVG", svg))
    seen_as = chosen_view(view, view_params)
    with Progress(title="bench", quiet=quiet) as progress:
        rows = max(batch_size)
        opened = _opened(models, folder, provider[0], size, rows, dataset, seen_as, progress.message)
        asked = configurations(opened, batch_size, threads, provider)

        def show(number: int, now: Model, how: Configuration) -> None:
            progress.update(
                round=f"{number}/{rounds}",
                model=now.name,
                batch_size=how.batch_size,
                threads=how.threads,
                provider=how.provider,
            )

        found = measure(opened, asked, rounds, seconds, show)
    if svg is not None:
        from pipeline.whole_files import write_whole
        from student_trainer.curves import picture

        write_whole(svg, picture(*as_curves(found), "batch size", what="models", doubling=True))
    results = as_dicts(found, price_per_hour)
    if as_json:
        described = [
            {"name": each.name, "path": str(each.path), "file_bytes": each.file_bytes, "inputs": each.data}
            for each in opened
        ]
        print_json(
            {
                "timed": _TIMED,
                "rounds": rounds,
                "seconds": seconds,
                "models": described,
                "results": results,
                "svg": svg and str(svg),
            }
        )
        return
    print_table(_table(results, {each.name: each.file_bytes for each in opened}, price_per_hour is not None))
    click.echo(f"\ntimed: {_TIMED}; {rounds} rounds of {seconds:g} s, each in a fresh process")
    for each in opened:
        click.echo(f"{each.name}: on {each.data}")


def _opened(
    names: tuple[str, ...],
    folder: Path,
    provider: str,
    texts: tuple[str, ...],
    rows: int,
    dataset: str | None,
    view: ViewSpec | None,
    say: Callable[[str], object],
) -> list[Model]:
    """What is to be measured: files as they are, and runs' students."""
    from pipeline.bench.figures import Model
    from pipeline.bench.inputs import MAX_ROWS, Inputs, declared_inputs, random_inputs, sizes_of
    from schemas.errors import ConfigError
    from teacher_service.models.files import external_data

    sizes, rows = sizes_of(texts), min(rows, MAX_ROWS)
    models, unused = [], dict(sizes)
    for name in names:
        path = Path(name)
        if path.suffix == ".onnx" or path.is_file():
            beside = external_data(path)
            declared = declared_inputs(path, provider)
            for each in declared:
                for _, free in each.free():
                    unused.pop(free, None)
            inputs, data = random_inputs(path, declared, sizes, rows), "random values of a fixed seed"
        else:
            from student_trainer.measuring import student_to_measure

            path, arrays = student_to_measure(run_path(folder, name), dataset, view, rows, say)
            first = declared_inputs(path, provider)[0].shape[0]  # where `runs export --fixed-batch` has fixed it
            inputs = Inputs(arrays, frozenset(arrays), first if isinstance(first, int) else None)
            data, beside = "its own data", external_data(path)
        num_bytes = sum(file.stat().st_size for file in [path, *beside])
        models.append(Model(name, path, num_bytes, inputs, data))
    if unused:
        raise ConfigError(f"--size {next(iter(unused))}: no MODEL.onnx here has a free dimension of that name")
    return models


def _table(results: list[dict[str, Any]], files: dict[str, int], priced: bool) -> list[tuple[object, ...]]:
    """Rows to print; what differs nowhere stands there all the same: a table is read without its command."""
    compared = len(files) > 1
    head = ["model", "provider", "threads", "batch", "p50 ms", "p95 ms", "p99 ms", "samples/s", "least", "most"]
    head += ["peak MiB", "file MiB", *(["per million"] if priced else [])]
    head += ["p50 ratio", "samples/s ratio"] if compared else []
    rows: list[tuple[object, ...]] = [tuple(head)]
    for each in results:
        speed, peak, ratios = each["samples_per_s"], each["peak_bytes"], each.get("ratios", {})
        rows.append(
            (
                *(each[name] for name in ("model", "provider", "threads", "batch_size")),
                *(_median(each[name]) for name in ("p50_ms", "p95_ms", "p99_ms")),
                *(_rounded(speed[name]) for name in ("median", "least", "most")),
                None if peak is None else _rounded(peak["median"] / 2**20),
                _rounded(files[each["model"]] / 2**20),
                *([_rounded(each["cost_of_a_million"])] if priced else []),
                *([_median(ratios.get(name)) for name in ("p50_ms", "samples_per_s")] if compared else []),
            )
        )
    return rows


def _median(spread: dict[str, float] | None) -> int | float | None:
    return None if spread is None else _rounded(spread["median"])


def _rounded(value: float) -> int | float:
    return round(value) if value >= 1000 else float(f"{value:.3g}")
