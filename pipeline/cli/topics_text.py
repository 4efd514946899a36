"""What `distillog topics describe` and `lag` print for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.options import print_table

if TYPE_CHECKING:
    from pipeline.stream_status import RunStatus, StreamDescription, StreamStatus, TeacherStatus, WorkerStatus
    from pipeline.trim import Trim


def print_trim(stream: str, plan: Trim) -> None:
    """Print what of a stream's labels may go, and who holds the others."""
    if plan.records:
        teachers = len({log.topic for log in plan.offsets})
        of = "1 teacher" if teachers == 1 else f"{teachers} teachers"
        click.echo(
            f"stream {stream}: labels of the orders 0 to {plan.sequence - 1:,} ({plan.epochs} whole epochs) by {of}: "
            f"{plan.records:,} records"
        )
    else:
        click.echo(f"stream {stream}: no labels to delete")
    click.echo(f"runs that were asked: {', '.join(plan.runs) or 'none'}; of others nothing is known")
    for run, first in plan.held_by.items():
        click.echo(f"run {run} needs those from order {first:,} on (if it will not be resumed: --without {run})")


def print_description(described: StreamDescription) -> None:
    """Print all that `status.describe` found."""
    from pipeline.names import heads_topic

    manifest, status = described.manifest, described.status
    params = " ".join(f"{name}={value}" for name, value in manifest.view.params.items())
    classes = manifest.num_classes or "unknown"
    facts = {
        "stream": f"{manifest.stream} ({manifest.stream_id})",
        "dataset": f"{manifest.dataset} ({manifest.num_samples} samples, {classes} classes)",
        "fingerprint": manifest.dataset_fingerprint,
        "view": f"{manifest.view.name} {params}".rstrip(),
        "orders": f"{status.orders} of {manifest.order_size} samples, {manifest.epochs} epochs, seed {manifest.seed}",
        "partitions": manifest.partitions,
        "codec": f"{manifest.codec} (records up to {manifest.max_record_bytes} bytes)",
    }
    if manifest.replay_of:
        facts["labels of"] = ", a replay of ".join(map(str, manifest.replay_of))
    for name, value in facts.items():
        click.echo(f"{name:<12} {value}")
    for teacher in status.teachers:
        declared = described.teachers[teacher.name]
        click.echo(f"\nteacher      {teacher.name}: {declared.model_file} (sha256 {declared.sha256})")
        for fact in (*declared.inputs, *declared.outputs):
            click.echo(f"{'':12} {fact}")
        for output in [each for each in declared.outputs if each.head_sha256]:
            topic = heads_topic(manifest.stream, teacher.name)
            click.echo(f"{'':12} last layer of {output.name} (sha256 {output.head_sha256}) in topic {topic}")
        lineage = described.lineages.get(teacher.name)
        if lineage and (by := lineage.publisher):
            click.echo(f"{'':12} run {by.run} (run ID {by.run_id}) publishes for it every {by.every} orders")
            for newest in lineage.generations[-1:]:
                what = (
                    f"generation {newest.number}, of order {newest.sequence}: {newest.model} (sha256 {newest.sha256})"
                )
                click.echo(f"{'':12} {what}")
        click.echo(f"{'':12} batches of {declared.inference_batch}")
        click.echo(f"{'':12} consumer group {teacher.group}")
    click.echo()
    print_lag(status, partitions=False)


def print_lag(status: StreamStatus, partitions: bool) -> None:
    """Print what `status.lag` found; with `partitions` also committed against end offsets of each."""
    rate = _rate(status.fed_per_second)
    letters = f" (see `distillog letters list {status.stream}`)" if status.dead_letters else ""
    click.echo(f"fed {status.fed} of {status.orders} orders{rate}, {status.dead_letters} dead letters{letters}")
    for teacher in status.teachers:
        rate = _rate(teacher.labelled_per_second)
        click.echo(
            f"teacher {teacher.name}: {teacher.labelled} orders labelled{rate}, lag {teacher.lag}, {_group(teacher)}"
        )
        for member in teacher.members:
            click.echo(f"  {member.client_id} on {member.host}: {_standing(member)}")
        if partitions:
            header = ["PARTITION", "COMMITTED", "END", "LAG"]
            print_table([header, *([row.partition, row.committed, row.end, row.lag] for row in teacher.offsets)])
    for name, why in status.unread_teachers.items():
        click.echo(f"teacher {name}: {why}")
    if not status.teachers and not status.unread_teachers:
        click.echo("no teachers")
    for run in status.runs:
        click.echo(
            f"run {run.name}: {_place(run, status.orders)}{_rate(run.orders_per_second)}, on {run.report.host}, "
            f"reported {run.age} s ago"
        )


def _group(teacher: TeacherStatus) -> str:
    """How its workers' group stands; "Dead" is Kafka's word for a group that nobody has joined."""
    return "no worker yet" if teacher.state == "Dead" else f"group {teacher.state}, {len(teacher.members)} members"


def _standing(worker: WorkerStatus) -> str:
    """What a worker has to do, and how fast it is: by itself, and by what was labelled in its partitions."""
    speed = worker.samples_per_second
    return (
        f"{worker.partitions} partitions, lag {worker.lag}{_rate(worker.labelled_per_second)}, "
        f"{'speed not known' if speed is None else f'{speed:,.3g} samples/s'}"
    )


def _place(run: RunStatus, num_orders: int) -> str:
    """Where a run is, or how much it came to: passes count from 1 here, like everything that people count."""
    report = run.report
    if report.state != "done":
        of = "" if report.passes is None else f" of {report.passes}"
        return (
            f"{report.state}, pass {report.pass_number + 1}{of}, order {report.sequence} of {num_orders}, "
            f"checkpoint at {report.checkpointed}"
        )
    if report.passes is not None:  # rows that fill no batch were left over in the last one
        return f"done, {report.passes} of {report.passes} passes"
    whole = f"{report.pass_number} pass{'es' * (report.pass_number != 1)}" if report.pass_number else ""
    rest = f"{report.sequence} of {num_orders} orders" if report.sequence or not whole else ""
    return f"done, {' and '.join(filter(None, (whole, rest)))}"


def _rate(per_second: float | None) -> str:
    return "" if per_second is None else f" ({per_second} per second)"
