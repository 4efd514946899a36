"""What `distillog topics describe` and `lag` print for people."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.options import print_table


def print_description(described: dict[str, Any]) -> None:
    """Print all that `status.describe` found."""
    view = described["view"]
    params = " ".join(f"{name}={value}" for name, value in view["params"].items())
    classes = described["classes"] or "unknown"
    facts = {
        "stream": f"{described['stream']} ({described['stream_id']})",
        "dataset": f"{described['dataset']} ({described['samples']} samples, {classes} classes)",
        "fingerprint": described["dataset_fingerprint"],
        "view": f"{view['name']} {params}".rstrip(),
        "orders": f"{described['orders']} of {described['order_size']} samples, {described['epochs']} epochs, "
        f"seed {described['seed']}",
        "partitions": described["partitions"],
        "codec": f"{described['codec']} (records up to {described['max_record_bytes']} bytes)",
    }
    for name, value in facts.items():
        click.echo(f"{name:<12} {value}")
    for teacher in described["teachers"]:
        click.echo(f"\nteacher      {teacher['name']}: {teacher['model_file']} (sha256 {teacher['sha256']})")
        for one in teacher["inputs"]:
            click.echo(f"{'':12} {one['text']}")
        click.echo(
            f"{'':12} output {teacher['output']}, {teacher['kind']}, {teacher['classes']} classes, "
            f"batches of {teacher['inference_batch']}"
        )
        click.echo(f"{'':12} consumer group {teacher['group']}")
    click.echo()
    print_lag(described, partitions=False)


def print_lag(reading: dict[str, Any], partitions: bool) -> None:
    """Print what `status.lag` found; with `partitions` also committed against end offsets of each."""
    rate = _rate(reading, "fed_per_second")
    letters = f" (see `distillog letters list {reading['stream']}`)" if reading["dead_letters"] else ""
    click.echo(
        f"fed {reading['fed']} of {reading['orders']} orders{rate}, {reading['dead_letters']} dead letters{letters}"
    )
    for teacher in reading["teachers"]:
        rate = _rate(teacher, "labelled_per_second")
        click.echo(
            f"teacher {teacher['name']}: {teacher['labelled']} orders labelled{rate}, lag {teacher['lag']}, "
            f"{_group(teacher)}"
        )
        for member in teacher["members"]:
            click.echo(f"  {member['client_id']} on {member['host']}: {_standing(member)}")
        if partitions:
            header = ["PARTITION", "COMMITTED", "END", "LAG"]
            print_table([header, *([row[name.lower()] for name in header] for row in teacher["offsets"])])
    for name, why in reading["unread_teachers"].items():
        click.echo(f"teacher {name}: {why}")
    if not reading["teachers"] and not reading["unread_teachers"]:
        click.echo("no teachers")
    for run in reading["runs"]:
        rate = _rate(run, "orders_per_second")
        click.echo(
            f"run {run['name']}: {run['state']} on {run['host']}, pass {run['pass']}, order {run['sequence']}{rate}, "
            f"checkpoint at {run['checkpointed']}, reported {run['age']} s ago"
        )


def _group(teacher: dict[str, Any]) -> str:
    """How its workers' group stands; "Dead" is Kafka's word for a group that nobody has joined."""
    state = teacher["state"]
    return "no worker yet" if state == "Dead" else f"group {state}, {len(teacher['members'])} members"


def _standing(member: dict[str, Any]) -> str:
    """What a worker has to do, and how fast it is: by itself, and by what was labelled in its partitions."""
    speed = member["samples_per_second"]
    return (
        f"{member['partitions']} partitions, lag {member['lag']}{_rate(member, 'labelled_per_second')}, "
        f"{'speed not known' if speed is None else f'{speed:,.3g} samples/s'}"
    )


def _rate(values: dict[str, Any], name: str) -> str:
    return f" ({values[name]} per second)" if name in values else ""
