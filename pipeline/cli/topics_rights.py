"""`distillog topics rights`: the commands that let somebody do one role's work on a cluster with an authorizer."""

from __future__ import annotations

from dataclasses import asdict

import click

from pipeline.cli.options import STREAM, json_option, kafka_settings, print_json
from pipeline.rights import ROLES, Scope, commands, grants

SERVERS = "HOST:PORT"
"""What stands for the cluster where none is named."""


@click.command()
@STREAM
@click.option("--principal", required=True, metavar="TYPE:NAME", help="Who is to have the rights, as User:alice.")
@click.option("--role", required=True, type=click.Choice(list(ROLES)), help="What they are for.")
@click.option("--teacher", default="", metavar="NAME", help="Of this teacher alone.  [default: of all]")
@click.option("--run", default="", metavar="NAME", help="Of this run alone, with --stream-id.  [default: of all]")
@click.option("--stream-id", default="", metavar="ID", help="Of this very stream's groups alone, as describe shows it.")
@click.option("--command-config", default="", metavar="FILE", help="Handed on to kafka-acls.sh: who grants them.")
@json_option
def rights(
    stream: str,
    principal: str,
    role: str,
    teacher: str,
    run: str,
    stream_id: str,
    command_config: str,
    as_json: bool,
) -> None:
    """Print the kafka-acls.sh commands that grant what a role needs for STREAM, which need not exist yet."""
    needed = grants(role, Scope(stream, teacher, run, stream_id))
    lines = commands(needed, principal, kafka_settings(otherwise=SERVERS).bootstrap_servers, command_config)
    if as_json:
        print_json([{**asdict(grant), "command": line} for grant, line in zip(needed, lines, strict=True)])
        return
    for grant, line in zip(needed, lines, strict=True):
        click.echo(f"# {grant.why}\n{line}")
