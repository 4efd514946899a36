"""What a user says of an ONNX file on the command line, and what is no such thing."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from pipeline.cli.model_options import model_options
from teacher_service.models.declared import Declared, Scaling


@click.command()
@model_options
def say(declared: Declared) -> None:
    """Print the declaration."""
    scaling = {field: [one.scale, one.mean, one.std] for field, one in declared.scaling.items()}
    general = declared.general
    click.echo(
        json.dumps([dict(declared.inputs), scaling, [general.scale, general.mean, general.std], declared.channel_order])
    )


def said(*arguments: str) -> Declared:
    """The declaration; a refusal is an assertion."""
    result = CliRunner().invoke(say, list(arguments))
    assert result.exit_code == 0, result.output
    inputs, scaling, general, order = json.loads(result.stdout)
    parsed = {field: Scaling(one[0], tuple(one[1]), tuple(one[2])) for field, one in scaling.items()}
    return Declared(
        inputs=inputs,
        scaling=parsed,
        general=Scaling(general[0], tuple(general[1]), tuple(general[2])),
        channel_order=order,
    )


def test_nothing_said_declares_nothing() -> None:
    assert said() == Declared()


def test_a_fraction_is_a_number() -> None:
    assert said("--scale", "1/255") == said("--scale", repr(1 / 255)) == Declared(general=Scaling(1 / 255))


def test_channels_are_joined_by_commas() -> None:
    declared = said("--mean", "0.485,0.456,-0.4", "--std", "0.229", "--channel-order", "bgr")
    assert declared == Declared(general=Scaling(None, (0.485, 0.456, -0.4), (0.229,)), channel_order="bgr")


FORMULAS = {
    "image=x": None,
    "image=x*255": Scaling(255.0),
    "image=x*-1": Scaling(-1.0),
    "image=x*1/255": Scaling(1 / 255),
    "image=x*1e-2": Scaling(0.01),
    "image=x*1-0.5": Scaling(1.0, (0.5,)),
    "image=x*1--0.5/2": Scaling(1.0, (-0.5,), (2.0,)),
    "image=x*1/255-0.485,0.456,0.406/0.229,0.224,0.225": Scaling(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@pytest.mark.parametrize("text", FORMULAS)
def test_an_inputs_own_arithmetic_reads_as_a_formula(text: str) -> None:
    scaling = FORMULAS[text]
    expected = Declared(inputs={"image": "x"}, scaling={"image": scaling} if scaling else {})
    assert said("--input", text) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ("--scale", "many"),
        ("--scale", "1/0"),
        ("--scale", "nan"),
        ("--scale", "inf"),
        ("--scale", "0"),
        ("--scale", "-0.0"),
        ("--scale", "1e-400"),
        ("--scale", "1e-39"),
        ("--scale", "1e39"),
        ("--scale", "1e308"),
        ("--scale", "1/1e300"),
        ("--mean", "1e39"),
        ("--mean", "0.5,"),
        ("--mean", "0.5;0.5"),
        ("--std", "0"),
        ("--std", "1,-1"),
        ("--std", "1e-320"),
        ("--std", "1,1e39"),
        ("--channel-order", "grb"),
        ("--input", "image"),
        ("--input", "image=x*"),
        ("--input", "image=x*many"),
        ("--input", "image=x*1/0"),
        ("--input", "image=x*1-"),
        ("--input", "image=x*1-0.5/0"),
        ("--input", "image=x*0"),
        ("--input", "image=x*1e39"),
        ("--input", "image=x*1-0/1e-320"),
        ("--input", "image=x", "--input", "image=y"),
    ],
    ids=" ".join,
)
def test_what_is_no_arithmetic_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(say, list(arguments))
    assert result.exit_code == 2
    assert "Error: " in result.stderr.splitlines()[-1]


@click.command()
@model_options
def say_outputs(declared: Declared) -> None:
    """Print what is said of the outputs."""
    for one in declared.outputs:
        click.echo(f"{one} | {one.class_map} | {one.reduction}")


def test_each_output_may_have_a_class_map_and_a_reduction() -> None:
    arguments = ["--output", "logits=y", "--output", "hidden=h:features", "--class-map", "logits=my=classes.txt"]
    result = CliRunner().invoke(say_outputs, [*arguments, "--reduce", "hidden=mean@1"])
    assert result.stdout.splitlines() == ["logits=y | my=classes.txt | ", "hidden=h:features | None | mean@1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--class-map", "classes.txt"), "write NAME=FILE, of an output that --output names (logits)"),
        (("--class-map", "logits="), "write NAME=FILE"),
        (("--class-map", "hidden=classes.txt"), "write NAME=FILE, of an output that --output names (logits)"),
        (("--reduce", "mean@1"), "write NAME=REDUCTION"),
        (("--reduce", "logits=mean@1", "--reduce", "logits=first@1"), "output logits is given two"),
    ],
)
def test_what_is_said_of_no_output_is_a_usage_error(arguments: tuple[str, ...], says: str) -> None:
    result = CliRunner().invoke(say_outputs, ["--output", "logits=y", *arguments])
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
