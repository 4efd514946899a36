"""`distillog topics add-teacher`: an ONNX file becomes a teacher, and is tried on samples first."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.model_options import model_options, of_outputs
from pipeline.cli.options import STREAM, json_option, kafka_options, print_json

if TYPE_CHECKING:
    from schemas.records import Teacher
    from teacher_service.models.assess import Assessment, Way
    from teacher_service.models.declared import Declared


@click.command("add-teacher")
@STREAM
@click.argument("name")
@click.argument("model", type=click.Path(dir_okay=False, path_type=Path))
@model_options
@click.option(
    "--codec",
    "codecs",
    metavar="[NAME=]CODEC",
    multiple=True,
    help="How an output is stored, such as hidden=float32, or the only one, such as head (repeatable).  [default: the "
    "stream's; float16 of features]",
)
@click.option(
    "--positions",
    metavar="NAME=FIELD",
    multiple=True,
    help="Store an output at the positions where FIELD of the view is not 0 (repeatable).  [default: all of it]",
)
@click.option(
    "--cut",
    type=click.Choice(["auto", "numpy", "graph"]),
    default="auto",
    show_default=True,
    help="Who keeps the likeliest classes for topk: NumPy, or ONNX Runtime; auto measures on some samples.",
)
@click.option("--classes", type=click.IntRange(min=1), help="Refuse a teacher of another number of classes.")
@click.option(
    "--as-declared",
    is_flag=True,
    help="Take it so even where another way is clearly better, or outputs are not finite.",
)
@click.option("--dataset", metavar="URI", help="The stream's data at another place.")
@json_option
def add_teacher(
    stream: str,
    name: str,
    model: Path,
    declared: Declared,
    codecs: tuple[str, ...],
    positions: tuple[str, ...],
    cut: str,
    classes: int | None,
    as_declared: bool,
    dataset: str | None,
    as_json: bool,
) -> None:
    """Register the ONNX file MODEL as teacher NAME of STREAM, and make its topic."""
    from dataclasses import replace

    from schemas.codecs import CodecSpec
    from teacher_service.models import adding

    of_only = [text for text in codecs if "=" not in text or ":" in text.partition("=")[0]]
    if of_only and len(codecs) > 1:
        raise click.UsageError(f"--codec {of_only[0]!r}: of several, say of each which output's it is: NAME=CODEC")
    if of_only:
        declared, codecs = replace(declared, codec=CodecSpec.parse(of_only[0])), ()
    declared = of_outputs(declared, "--codec", "CODEC", codecs, lambda text: {"codec": CodecSpec.parse(text)})
    declared = of_outputs(declared, "--positions", "FIELD", positions, lambda text: {"positions": text})
    added = adding.add_teacher(
        stream,
        name,
        model,
        declared,
        classes=classes,
        as_declared=as_declared,
        dataset=dataset,
        cut=cut,
        **kafka_options(),
    )
    teacher, found, new = added.teacher, added.found, added.new
    if as_json:
        accuracy = found.declared.accuracy if found else None
        cuts = {one.name: one.cut for one in teacher.outputs}
        facts = {"stream": stream, "teacher": name, "sha256": teacher.sha256, "added": new, "accuracy": accuracy}
        print_json(facts | {"cut": cuts, "cut_rows_per_s": {each.output: each.rates for each in added.cuts}})
        _warn(found, teacher)
        return
    click.echo(f"{'added' if new else 'already there, the same:'} teacher {name} of stream {stream}")
    guessed = declared.layout is None and any(one.layout for one in teacher.inputs)
    click.echo(
        f"{teacher.model_file} (sha256 {teacher.sha256[:12]}): {'; '.join(map(str, teacher.inputs))}"
        f"{' (layout guessed by the shape)' if guessed else ''}; {'; '.join(map(str, teacher.outputs))}; "
        f"batches of {teacher.inference_batch}"
    )
    for each in added.cuts:
        click.echo(str(each))
    if found:
        _print(found, declared, teacher)
    _warn(found, teacher)


def _print(found: Assessment, declared: Declared, teacher: Teacher) -> None:
    """Print how the declared way did and, where nobody but the user can judge, how the others did."""
    from dataclasses import replace

    from teacher_service.models.checks import NO_CLASSES

    if not found.has_classes:
        click.echo(NO_CLASSES)
        return
    shown = [("as declared", found.declared)]
    if found.declared.accuracy is not None:
        count = found.declared.num_samples
        click.echo(f"accuracy as declared: {found.declared.accuracy:.1%} of {count} labelled samples")
        shown = []
    shown += [
        (shlex.join(declared.options(replace(teacher, inputs=way.inputs))), way)
        for way in found.others
        if _worth_a_word(found, way)
    ]
    for text, way in shown:
        click.echo(f"  {text}: {_figures(way, teacher)}")
    if not found.in_time:
        click.echo("  (more samples, or more ways to feed it, would have taken too long)")


def _warn(found: Assessment | None, teacher: Teacher) -> None:
    """Say of a teacher that is taken what speaks against it."""
    from teacher_service.models.adding import holes
    from teacher_service.models.checks import CHANCE_QUESTION, chance_level

    if found is None:
        return
    if found.declared.num_unfit:
        click.echo(f"warning: as declared, {teacher.model_file}'s {holes(found, teacher)}", err=True)
    for name in [name for name, count in found.declared.num_chosen.items() if not count]:
        field, count = teacher.output(name).positions, found.declared.num_samples
        click.echo(
            f"warning: field {field!r} is 0 at every position of the {count} samples that were looked at: it chooses "
            f"nothing of output {name!r} there",
            err=True,
        )
    text = ""
    if found.degenerate:
        text = "gives nearly all samples the same class: is it fed as in its training?"
    elif found.declared.accuracy is not None and teacher.class_output is not None:
        text = chance_level(found.declared.accuracy, found.declared.labels, teacher.class_output.codec_classes)
        text = f"is {text}; {CHANCE_QUESTION}" if text else ""
    if text:
        click.echo(f"warning: as declared, {teacher.model_file} {text}", err=True)


def _worth_a_word(found: Assessment, way: Way) -> bool:
    """Whether a way is shown: every one without labels, else one that may be better, or is and was overruled."""
    from teacher_service.models.assess import CLEAR_GAIN

    declared = found.declared.first(way.num_samples)
    if way.accuracy is None or declared.accuracy is None or way.accuracy - declared.accuracy >= CLEAR_GAIN:
        return True
    return declared.at_chance and not way.at_chance and way.accuracy > declared.accuracy  # of a class too rare to prove


def _figures(way: Way, teacher: Teacher) -> str:
    if way.accuracy is not None:
        return f"{way.accuracy:.1%} of {way.num_samples}"
    num_classes = teacher.class_output.codec_classes if teacher.class_output else 0
    _, share = way.commonest
    return (
        f"{way.num_classes_used} of {num_classes} classes on {way.num_samples} samples, the commonest "
        f"for {share:.1%}; mean confidence {way.confidence.mean():.2f}"
    )
