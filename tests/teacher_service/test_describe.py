"""From a file to a teacher's record, and every refusal as one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.colours import nearest_colour
from support.models import classifier
from support.streams import fetcher, manifest

from pipeline.datasets import Dataset
from pipeline.datasets.base import ArrayDataset, Arrays
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, DataUnavailable, DistillogError, TeacherRejected
from schemas.records import Teacher, TeacherInput, TeacherOutput
from teacher_service.models.declared import Declared, DeclaredOutput, Scaling
from teacher_service.models.describe import describe_model, describe_on
from teacher_service.models.files import model_sha256

DIGITS = fetcher()
BYTES = fetcher("support.user_data:bytes_0_to_255?count=40")


def describe(path: Path, source: Fetcher = DIGITS, **declared: Any) -> Teacher:
    return describe_model(path, "t", manifest(source), source, Declared(**declared))


def test_the_record_says_what_the_file_and_the_data_are(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    teacher = describe(path)
    image = TeacherInput("x", "image", "float32", "nchw", 1.0, ())
    order_size = 32
    output = TeacherOutput.of_classes("y", "logits", 10)
    expected = Teacher("0123456789abcdef", "t", model_sha256(path), "m.onnx", (image,), (output,), order_size)
    assert {name: getattr(teacher, name) for name in Teacher.__slots__} == {
        name: getattr(expected, name) for name in Teacher.__slots__
    }


@pytest.mark.parametrize(("fixed", "asked", "got"), [(16, None, 16), (16, 16, 16), (None, 8, 8), (1, None, 1)])
def test_the_batch_is_the_models_own_or_what_is_asked(
    tmp_path: Path, fixed: int | None, asked: int | None, got: int
) -> None:
    assert describe(classifier(tmp_path / "m.onnx", batch=fixed), batch=asked).inference_batch == got


def test_a_whole_number_input_of_another_name_takes_a_factor(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", dtype="int32", input_name="bytes", tail="probabilities")
    teacher = describe(path, kind="probabilities", inputs={"image": "bytes"}, scaling={"image": Scaling(255.0)})
    assert teacher.inputs == (TeacherInput("bytes", "image", "int32", "nchw", 255.0, ()),)
    assert teacher.outputs[0].kind == "probabilities"


def test_channels_last_are_seen_by_the_shape(tmp_path: Path) -> None:
    assert describe(classifier(tmp_path / "m.onnx", nhwc=True)).inputs[0].layout == "nhwc"


def test_a_fixed_size_is_asked_of_the_view(tmp_path: Path) -> None:
    source = fetcher("digits?split=train", "crop_flip")
    teacher = describe(classifier(tmp_path / "m.onnx", (1, 6, 6)), source)
    assert teacher.inputs[0].size == (6, 6)


def test_one_of_two_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", second_output=True)
    assert describe(path, outputs=(DeclaredOutput("y"),)).outputs[0].num_classes == 10
    assert describe(path, outputs=(DeclaredOutput("h2"),)).outputs[0].num_classes == 32


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], type[DistillogError], str]] = {
    "two outputs": ({"second_output": True}, {}, ConfigError, r"several outputs \(y, h2\): say which with --output"),
    "no such output": ({}, {"outputs": (DeclaredOutput("yy"),)}, ConfigError, "no output 'yy': did you mean 'y'"),
    "no such field": ({}, {"inputs": {"imag": "x"}}, ConfigError, "no field 'imag': did you mean 'image'"),
    "no such input": ({}, {"inputs": {"image": "xx"}}, ConfigError, "no input 'xx': did you mean 'x'"),
    "an input without a field": ({"second_input": True}, {}, ConfigError, "nothing says which field feeds input 'x'"),
    "another sample shape": ({"shape": (2, 8, 8)}, {}, TeacherRejected, "takes samples of shape 2x8x8.*gives 1x8x8"),
    "a layout that does not fit": ({}, {"layout": "nhwc"}, TeacherRejected, "takes samples of shape 1x8x8"),
    "another fixed batch": ({"batch": 16}, {"batch": 8}, TeacherRejected, "fixed batch of 16; --batch 8"),
    "no batch": ({}, {"batch": 0}, ConfigError, "--batch must be at least 1"),
    "bytes without a factor": (
        {"dtype": "int32"},
        {},
        TeacherRejected,
        r"takes int32.*such as --scale 255 \(--scale 1",
    ),
    "probabilities": ({"tail": "probabilities"}, {}, TeacherRejected, "--kind probabilities"),
    "no probabilities": ({}, {"kind": "probabilities"}, TeacherRejected, "do not sum to 1"),
    "no log probabilities": ({}, {"kind": "log_probabilities"}, TeacherRejected, "--kind logits"),
    "no finite row": ({"nan_above": -1.0}, {}, TeacherRejected, "not finite"),
    "one number": ({"tail": "one_number"}, {}, TeacherRejected, "shape|fails on"),
    "one class": ({"num_classes": 1}, {}, TeacherRejected, "at least 2"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_file_that_cannot_serve_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    options, declared, kind, says = REFUSALS[name]
    with pytest.raises(kind, match=says) as caught:
        describe(classifier(tmp_path / "m.onnx", **options), **declared)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


COLOURS = fetcher("support.colours:colours")
CHANNELS_LAST = fetcher("support.colours:colours?layout=hwc")


def test_bytes_into_floats_need_a_factor(tmp_path: Path) -> None:
    path = nearest_colour(tmp_path / "m.onnx")
    refusal = (
        r"takes float32, field 'image' gives uint8: declare a factor: --scale 1/255 \(0\.00392156862745098\) .* 1 if"
    )
    with pytest.raises(TeacherRejected, match=refusal):
        describe(path, COLOURS)
    with pytest.raises(TeacherRejected, match=r"--scale 1/255"):
        describe(path, COLOURS, general=Scaling(mean=(0.5,)))
    for scale in (1.0, 1 / 255):
        assert describe(path, COLOURS, general=Scaling(scale)).inputs[0].scale == scale


@pytest.mark.parametrize("scaling", [Scaling(1e38), Scaling(1.0, std=(1e-37,)), Scaling(1e36, (-3e38,))])
def test_an_arithmetic_that_leaves_float32_is_refused(tmp_path: Path, scaling: Scaling) -> None:
    with pytest.raises(
        ConfigError, match=r"makes of field 'image' numbers that no float32 can hold: .* \(--scale FACT"
    ):
        describe(nearest_colour(tmp_path / "m.onnx"), COLOURS, general=scaling)


def test_what_is_declared_of_all_images_yields_to_what_is_declared_of_one(tmp_path: Path) -> None:
    path = nearest_colour(tmp_path / "m.onnx")
    general, own = Scaling(1.0, (0.1,), (0.2,)), Scaling(1 / 255, (), (0.3, 0.4, 0.5))
    (one,) = describe(path, COLOURS, general=general, scaling={"image": own}, channel_order="bgr").inputs
    assert (one.scale, one.mean, one.std, one.channel_order) == (1 / 255, (0.1,), (0.3, 0.4, 0.5), "bgr")


def test_numbers_for_other_channels_than_there_are_are_refused(tmp_path: Path) -> None:
    for numbers in ({"mean": (0.1, 0.2)}, {"std": (1.0,) * 4}):
        (what,) = numbers
        with pytest.raises(ConfigError, match=f"{what} has . numbers, field 'image' has 3 channels"):
            describe(nearest_colour(tmp_path / "m.onnx"), COLOURS, general=Scaling(1.0, **numbers))
    with pytest.raises(ConfigError, match=r"--channel-order bgr: no image \[C, H, W\] has 3 channels"):
        describe(classifier(tmp_path / "g.onnx"), channel_order="bgr")


def test_an_arithmetic_for_images_is_refused_where_several_inputs_are_none(tmp_path: Path) -> None:
    source = fetcher("support.user_data:two_fields")
    path = classifier(tmp_path / "m.onnx", (4,), second_input=True)
    with pytest.raises(ConfigError, match="say it of each with --input FIELD="):
        describe(path, source, inputs={"first": "x", "second": "offset"}, general=Scaling(2.0))


def test_a_shape_that_says_no_layout_asks_for_one(tmp_path: Path) -> None:
    path = nearest_colour(tmp_path / "m.onnx", nhwc=True, open_shape=True)
    with pytest.raises(ConfigError, match=r"takes samples of shape \?x\?x\?, .* give --layout nchw or --layout nhwc"):
        describe(path, COLOURS, general=Scaling(1.0))
    for layout in ("nchw", "nhwc"):
        assert describe(path, COLOURS, general=Scaling(1.0), layout=layout).inputs[0].layout == layout


def test_channels_that_the_data_have_last_are_not_resized_into_fitting(tmp_path: Path) -> None:
    with pytest.raises(
        TeacherRejected, match=r"takes samples of shape 3x16x16, .* 16x16x3, which looks like \[H, W, C\]"
    ):
        describe(nearest_colour(tmp_path / "m.onnx"), CHANNELS_LAST, general=Scaling(1.0))
    (one,) = describe(nearest_colour(tmp_path / "l.onnx", nhwc=True), CHANNELS_LAST, general=Scaling(1.0)).inputs
    assert (one.layout, one.size) == ("", ())  # as they come


ONLY_Y: dict[str, Any] = {"outputs": (DeclaredOutput("y"),)}
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a scale": ({"general": Scaling(1 / 255)}, "--scale 1/255"),
    "all of it": (
        {"general": Scaling(1 / 255, (0.5,), (0.25, 0.5, 1.0)), "channel_order": "bgr", "layout": "nchw", "batch": 8},
        "--scale 1/255 --mean 0.5 --std 0.25,0.5,1 --layout nchw --channel-order bgr --batch 8",
    ),
    "names": (
        {"inputs": {"image": "x"}, "scaling": {"image": Scaling(2.0)}, **ONLY_Y, "kind": "logits"},
        "--input image=x --scale 2 --output y --kind logits",
    ),
    "an output of a name": (
        {
            "general": Scaling(1 / 255),
            "outputs": (DeclaredOutput("y", "scores", "logits", 1, CodecSpec("topk", 2)),),
        },
        "--scale 1/255 --output scores=y:logits@1 --codec scores=topk:k=2,temperatures=1",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_declaration_is_said_again_in_options(tmp_path: Path, name: str) -> None:
    said, options = OPTIONS[name]
    declared = Declared(**said)
    teacher = describe(nearest_colour(tmp_path / "m.onnx"), COLOURS, **said)
    assert " ".join(declared.options(teacher)) == options


def test_two_fields_for_one_input_are_refused(tmp_path: Path) -> None:
    source = fetcher("support.user_data:two_fields")
    path = classifier(tmp_path / "m.onnx", (4,))
    with pytest.raises(ConfigError, match="input 'x' is given two fields"):
        describe(path, source, inputs={"first": "x", "second": "x"})


def test_a_bad_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="teacher"):
        describe_model(classifier(tmp_path / "m.onnx"), "a.b", manifest(DIGITS), DIGITS)


def test_a_file_that_onnx_runtime_cannot_load_is_refused_in_one_line(tmp_path: Path) -> None:
    import onnx

    path = classifier(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, str(path))
    with pytest.raises(TeacherRejected, match="ONNX Runtime cannot load it") as caught:
        describe(path)
    assert "\n" not in str(caught.value)


class _Away:
    """A dataset on a mount that is away."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def read(self, sample_ids: Any) -> Any:
        raise OSError("stale file handle")


def test_data_that_cannot_be_read_are_no_fault_of_the_model(tmp_path: Path) -> None:
    away: Any = _Away(DIGITS.dataset)
    with pytest.raises(DataUnavailable, match="stale file handle"):
        describe(classifier(tmp_path / "m.onnx"), Fetcher(away, view_spec("none", {})))


def unrolled(sample: Arrays, rng: np.random.Generator) -> Arrays:
    """A picture under a name of its own."""
    return {"picture": sample["pixels"].reshape(1, 8, 8)}


def test_a_model_is_fed_by_the_fields_that_the_view_gives(tmp_path: Path) -> None:
    pixels = DIGITS.dataset.read(np.arange(64)).fields["image"].reshape(64, 64)
    rows = ArrayDataset("rows", {"pixels": pixels}, np.arange(64) % 10, num_classes=10)
    own = Fetcher(rows, view_spec(f"{__name__}:unrolled", {}))
    path, ids = classifier(tmp_path / "m.onnx"), np.arange(64)
    for declared in (Declared(), Declared(inputs={"picture": "x"})):
        (fed,) = describe_on(path, "t", own, ids, 0, 32, "0123456789abcdef", declared).inputs
        assert (fed.field, fed.input, fed.layout) == ("picture", "x", "nchw")
    with pytest.raises(ConfigError, match="the view gives no field 'pixels'"):
        describe_on(path, "t", own, ids, 0, 32, "0123456789abcdef", Declared(inputs={"pixels": "x"}))


def test_a_users_own_data_feed_a_foreign_model(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", dtype="int32", input_name="tokens", tail="probabilities")
    teacher = describe(
        path, BYTES, kind="probabilities", inputs={"pixels": "tokens"}, scaling={"pixels": Scaling(1.0001)}
    )
    assert teacher.inputs[0].input == "tokens"
