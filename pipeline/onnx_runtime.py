"""ONNX Runtime's one home: imported here alone, without its telemetry, and all sessions opened with the same options.

It is imported inside the functions, since machines that neither label nor train lack it.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from schemas.errors import ConfigError, DistillogError
from schemas.names import did_you_mean

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

log = logging.getLogger(__name__)

# Before anybody imports it: it asks for Microsoft's telemetry host, again and again, and writes a device ID into the
# user's cache. Only this variable stops both; the call of its API comes too late. Who has set it keeps what was chosen.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""names of `--provider`; `auto` tries those of `_AUTO` in that order"""

ONNX_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
"""ONNX's types of tensors -> NumPy's dtypes; others are not fed"""

_AUTO = ("cuda", "rocm", "coreml", "directml", "cpu")


def choose_providers(name: str) -> list[str]:
    """Execution providers for `--provider NAME`, the CPU always last as the fallback for single operators.

    Raises:
        ConfigError: unknown, or not in the installed ONNX Runtime.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if name == "auto":
        return [PROVIDERS[known] for known in _AUTO if PROVIDERS[known] in available]
    if name not in PROVIDERS:
        raise ConfigError(f"unknown execution provider {name!r}: {did_you_mean(name, [*PROVIDERS, 'auto'])}")
    if PROVIDERS[name] not in available:
        raise ConfigError(f"this ONNX Runtime has no {PROVIDERS[name]}; it has {', '.join(available)}")
    return list(dict.fromkeys([PROVIDERS[name], PROVIDERS["cpu"]]))


def open_session(
    path: Path,
    provider: str = "cpu",
    threads: int = 0,
    *,
    spinning: bool = False,
    refusal: type[DistillogError] = ConfigError,
    graph: bytes | None = None,
) -> InferenceSession:
    """Open an ONNX file. The optimisation level is fixed, since another one gives other bits.

    Args:
        path: the file.
        provider: one of PROVIDERS, or `auto`: the first of those installed that loads; the log says what did not.
        threads: of one inference; 0 = as many as there are cores.
        spinning: whether idle threads stay awake: quicker, but several workers may share a machine, and a spinning
            thread takes the others' cores.
        refusal: the error of a file that ONNX Runtime cannot load.
        graph: an ONNX model that is opened instead, a changed copy of the file's; what it names of other files lies
            beside `path`.

    Raises:
        ConfigError: no such provider, or one whose libraries do not load here.
    """
    import onnxruntime

    providers = choose_providers(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Resolved: through a link other external data might be found than were hashed.
            resolved = path.resolve()
            if graph is not None:
                options.add_session_config_entry(
                    "session.model_external_initializers_file_folder_path", str(resolved.parent)
                )
            model = str(resolved) if graph is None else graph
            session = onnxruntime.InferenceSession(model, sess_options=options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise refusal(f"{path}: ONNX Runtime cannot load it: {' '.join(str(error).split())[:300]}") from None
    _check_providers(provider, providers, session.get_providers())
    return session


def rewriting_tools() -> SimpleNamespace:
    """Return the tools that rewrite a file with numbers of 8 or 16 bits, as ONNX Runtime names them."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return SimpleNamespace(
        QuantFormat=QuantFormat,
        QuantType=QuantType,
        convert_float_to_float16=convert_float_to_float16,
        quant_pre_process=quant_pre_process,
        quantize_dynamic=quantize_dynamic,
        quantize_static=quantize_static,
    )


def _check_providers(name: str, asked: list[str], loaded: list[str]) -> None:
    """ONNX Runtime goes on without a provider whose libraries do not load, perhaps a hundred times as slowly."""
    missing = [one for one in asked if one not in loaded]
    if missing and name != "auto":
        raise ConfigError(
            f"--provider {name}: {missing[0]} does not load here, so {loaded[0]} would run instead; install its "
            "libraries (driver, CUDA, cuDNN, ...) in the versions that this ONNX Runtime needs, or ask for another"
        )
    if missing:
        log.warning("%s is installed but does not load here; running on %s", " and ".join(missing), loaded[0])
