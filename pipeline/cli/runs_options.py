"""Arguments and options that several of `distillog runs` have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import view_param
from schemas.names import check_name

if TYPE_CHECKING:
    from schemas.records import ViewSpec

NAME = click.argument("name")
FOLDER = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where runs live, each in a folder of its own name.",
)
PEER = click.option("--peer", metavar="NAME", default="", help="Which of its [[peers]].  [default: that of [student]]")
VIEW = click.option("--view", metavar="NAME", help="How its samples are seen.  [default: the run file's]")
VIEW_PARAM = click.option(
    "--view-param", "view_params", metavar="NAME=VALUE", multiple=True, help="A parameter of --view (repeatable)."
)


def run_path(folder: Path, name: str) -> Path:
    """A run's folder. Raises ConfigError for what is no run's name, such as a path."""
    return folder / check_name("run", name)


def chosen_view(name: str | None, params: tuple[str, ...]) -> ViewSpec | None:
    """The view that --view and its parameters name; None where they do not. Raises UsageError."""
    from pipeline.views import view_spec

    if name is None and params:
        raise click.UsageError("--view-param needs --view")
    return view_spec(name, dict(map(view_param, params))) if name else None
