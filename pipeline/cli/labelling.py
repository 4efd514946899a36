"""What `distillog teach` and `distillog fleet` ask alike: a fleet hands it on to its workers."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import Seconds, Share
from pipeline.limits import MAX_THREADS, SAME_LABEL

MODEL = click.argument("model", type=click.Path(dir_okay=False, path_type=Path))
TEACHER = click.option(
    "--teacher", metavar="NAME", help="Which teacher of the stream; found by the file's content if not said."
)
DATASET = click.option("--dataset", metavar="URI", help="The stream's dataset at another place than the manifest says.")
PROVIDER = click.option(
    "--provider", default="auto", show_default=True, help="ONNX execution provider: auto, cpu, cuda, ..."
)
LOADERS = click.option(
    "--loaders",
    type=click.IntRange(1, MAX_THREADS),
    default=1,
    show_default=True,
    help="Threads that read and view the samples of an order; more pay off where that takes longer than the model.",
)
LOADER_PROCESSES = click.option(
    "--loader-processes",
    is_flag=True,
    help="Loaders are processes: for data or views of your own that hold Python's lock, or that threads cannot share.",
)
DATA_RETRY = click.option(
    "--data-retry",
    type=Seconds(0.0),
    default=60.0,
    show_default=True,
    help="Seconds for which a dataset that cannot be read is tried again.",
)
AGREEMENT = click.option(
    "--agreement",
    type=Share(),
    default=SAME_LABEL,
    show_default=True,
    help="How far, as a share of an output's range, labels may be off those of another worker that are there already.",
)
UNTIL_IDLE = click.option(
    "--until-idle", is_flag=True, help="End when every work order that there is has been labelled."
)
