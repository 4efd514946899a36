"""An ONNX file with numbers of 8 or 16 bits, made of one in float32 by ONNX Runtime's tools.

Static int8 is QDQ (Jacob et al. 2018): unsigned activations, whose ranges are the least and the most that calibration
samples came to, and signed symmetric weights of each output channel. Equal files and samples give equal files.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.onnx_runtime import rewriting_tools
from pipeline.user_code import said
from schemas.errors import ConfigError, DistillogError
from student_trainer.export import describe

Batch = dict[str, NDArray[Any]]
"""input -> [N, ...]"""

FULL, REDUCED = 127, 63
"""Largest magnitude of a weight. Without VNNI the CPU adds two products of uint8 and int8 in 16 bits, which saturate:
2 x 255 x 127 do, 2 x 255 x 63 do not."""
_LAYERS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
"""Operators whose weights get 8 bits -> axis of the output channels."""
_CARRIED = {"Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Relu"} | {
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Others that stay in 8 bits between them, so that numbers are not converted there and back."""


@dataclass(frozen=True, slots=True)
class Layer:
    """An operator with weights."""

    node: str
    name: str
    """For people: that of its weights in the student, else the node's."""


def has_vnni(cpuinfo: str) -> bool:
    """Say by the text of /proc/cpuinfo whether products of 8 bits are added up in 32 here.

    On ARM they are, with SDOT or without; what is not known counts as no.
    """
    flags = {
        flag
        for line in cpuinfo.splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
        for flag in line.partition(":")[2].split()
    }
    return bool(flags & {"avx512_vnni", "avx_vnni", "asimd"})


def largest_weight(bits: str) -> int:
    """Return FULL or REDUCED for `8`, `7` or `auto`: what the CPU of this machine computes without saturation."""
    if bits == "auto":
        try:
            return FULL if has_vnni(Path("/proc/cpuinfo").read_text()) else REDUCED
        except OSError:
            return REDUCED
    return FULL if bits == "8" else REDUCED


class Quantiser:
    """A float32 file, prepared: shapes inferred, constants folded, batch norm fused. Use as a context manager.

    Raises:
        ConfigError: ONNX Runtime cannot prepare it.
    """

    def __init__(self, path: Path) -> None:
        import onnx

        self.path = path
        """The one in float32."""
        self._metadata = {each.key: each.value for each in onnx.load(path, format="protobuf").metadata_props}
        self._folder = tempfile.TemporaryDirectory(prefix="distillog-")
        self._prepared = Path(self._folder.name) / "prepared.onnx"
        try:
            with _one_line(path):
                rewriting_tools().quant_pre_process(str(path), str(self._prepared), skip_symbolic_shape=True)
            self._model = onnx.load(self._prepared, format="protobuf")
            for number, node in enumerate(self._model.graph.node):
                node.name = node.name or f"node_{number}"
            # PyTorch states the shapes of weights among those of values, where the tools forget to turn them round.
            weights = {each.name: tuple(each.dims) for each in self._model.graph.initializer}
            values = [each for each in self._model.graph.value_info if each.name not in weights]
            del self._model.graph.value_info[:]
            self._model.graph.value_info.extend(values)
            onnx.save(self._model, self._prepared, format="protobuf")
        except BaseException:
            self.close()
            raise
        nodes = [each for each in self._model.graph.node if each.op_type in _LAYERS]
        with_weights = [each for each in nodes if len(weights.get(each.input[1], ())) > 1]
        self.layers = [Layer(each.name, _title(each)) for each in with_weights]
        """In the order of the graph."""
        self._others = [each.name for each in nodes if each not in with_weights]
        self.num_convolutions = sum(each.op_type.startswith("Conv") for each in with_weights)

    def __enter__(self) -> Quantiser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was prepared."""
        self._folder.cleanup()

    def static(
        self, path: Path, batches: Sequence[Batch], largest: int, floats: Sequence[str] = (), only: str = ""
    ) -> None:
        """Write a file with static int8.

        Args:
            path: where to.
            batches: samples that the activations' ranges are taken from.
            largest: FULL or REDUCED.
            floats: nodes of layers that stay in float32.
            only: the node of the one layer that does not; "": all the others.

        Raises:
            ConfigError: ONNX Runtime cannot quantise it.
        """
        tools = rewriting_tools()
        layers = [only] if only else [each.node for each in self.layers if each.node not in floats]
        options: dict[str, Any] = {"MatMulConstBOnly": True}
        if largest == REDUCED:
            options["TensorQuantOverrides"] = self._reduced(layers)
        with _one_line(self.path):
            tools.quantize_static(
                str(self._prepared),
                str(path),
                _Reader(batches),
                quant_format=tools.QuantFormat.QDQ,
                op_types_to_quantize=sorted(_CARRIED | _LAYERS.keys()),
                per_channel=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                nodes_to_quantize=[only] if only else [],
                nodes_to_exclude=[*floats, *self._others],
                extra_options=options,
            )
        self._finish(path)

    def dynamic(self, path: Path, largest: int) -> None:
        """Write a file whose matrix products compute in int8, with ranges of activations of each call's own batch.

        Tables that rows are looked up in, as of word vectors, are stored in int8, with one scale each.

        Raises:
            ConfigError: ONNX Runtime cannot quantise it.
        """
        tools = rewriting_tools()
        with _one_line(self.path):
            tools.quantize_dynamic(
                self._unshared(),
                str(path),
                op_types_to_quantize=["Gather", "Gemm", "MatMul"],
                per_channel=True,
                reduce_range=largest == REDUCED,
                weight_type=tools.QuantType.QInt8,
            )
        self._finish(path, largest)

    def halves(self, path: Path) -> None:
        """Write a file that computes in float16; inputs and outputs stay as they are.

        Raises:
            ConfigError: ONNX Runtime cannot convert it.
        """
        import onnx

        with _one_line(self.path):
            onnx.save(
                rewriting_tools().convert_float_to_float16(onnx.load(self.path, format="protobuf"), keep_io_types=True),
                path,
                format="protobuf",
            )
        self._finish(path)

    def _unshared(self) -> Any:
        """Return what was prepared, with weights of each Gemm's own: the tools turn them round once for each of it."""
        import onnx

        model = onnx.load(self._prepared, format="protobuf")
        arrays = {each.name: each for each in model.graph.initializer}
        uses = Counter(name for node in model.graph.node for name in node.input)
        for node in model.graph.node:
            if node.op_type == "Gemm" and uses[node.input[1]] > 1 and node.input[1] in arrays:
                own = model.graph.initializer.add()
                own.CopyFrom(arrays[node.input[1]])
                own.name = f"{node.input[1]}.{node.name}"
                node.input[1] = own.name
        return model

    def _reduced(self, layers: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """ONNX Runtime's own reduced range ends at 64, which is one of 8 bits: take scales that end at 63."""
        from onnx.numpy_helper import to_array

        arrays = {each.name: each for each in self._model.graph.initializer}
        found = {}
        for node in self._model.graph.node:
            if node.name not in layers:
                continue
            axis = _LAYERS[node.op_type]
            if node.op_type == "Gemm" and any(each.name == "transB" and each.i for each in node.attribute):
                axis = 0
            weights = to_array(arrays[node.input[1]])
            others = tuple(each for each in range(weights.ndim) if each != axis)
            most = np.abs(weights).max(axis=others).astype(np.float64) * 64 / REDUCED
            found[node.input[1]] = [
                {
                    "axis": axis,
                    "symmetric": True,
                    "reduce_range": True,
                    "rmin": np.float32(-end),
                    "rmax": np.float32(end),
                }
                for end in most
            ]
        return found

    def _finish(self, path: Path, largest: int = FULL) -> None:
        """Give a file the metadata of the one in float32, and nothing of its making."""
        import onnx

        model = onnx.load(path, format="protobuf")
        used = {node.domain for node in model.graph.node} | {""}
        domains = [each for each in model.opset_import if each.domain in used]
        del model.opset_import[:]
        model.opset_import.extend(sorted(domains, key=lambda each: str(each.domain)))
        if largest == REDUCED:
            _end_at(model, REDUCED)
        onnx.save(model, path, format="protobuf")
        describe(path, self._metadata)


class _Reader:
    """Samples as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Batch | None:
        """Return the next batch; None at the end."""
        return next(self._batches, None)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches


def _end_at(model: Any, largest: int) -> None:
    """Cut weights off, where scales cannot be chosen: of dynamic int8, by a 64th of a channel's largest at most."""
    from onnx.numpy_helper import from_array, to_array

    for each in model.graph.initializer:
        values = to_array(each)
        if values.dtype == np.int8 and values.ndim > 1:
            each.CopyFrom(from_array(np.clip(values, -largest - 1, largest), each.name))


def _title(node: Any) -> str:
    weights = str(node.input[1])
    return weights.removeprefix("student.").removesuffix(".weight") if weights.endswith(".weight") else str(node.name)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what the tools raise into one line; numbers too small for float16 are no matter for a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DistillogError, MemoryError, OSError):
        raise
    except Exception as error:  # they have no common base
        raise ConfigError(f"{path}: ONNX Runtime cannot rewrite it with fewer bits: {said(error)}") from error
