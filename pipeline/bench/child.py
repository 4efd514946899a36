"""A process that opens one ONNX file and times its calls: asked on stdin, it answers on the last line of stdout.

It is started anew for each figure, so that its memory is that of one model with one batch, and that neither the order
of the models nor what one left behind in a heap or a cache is measured.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.bench.inputs import Inputs
from pipeline.bench.times import time_calls
from pipeline.onnx_runtime import choose_providers, open_session
from pipeline.user_code import said
from schemas.errors import ConfigError, DistillogError

_PROC = Path("/proc/self")
_CALLS = 10
"""Before the peak is read: the same shapes need no more memory later on."""


def peak_bytes() -> int | None:
    """Peak resident memory of this process so far (VmHWM), None where there is no /proc.

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """
    with suppress(OSError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None


def _forget_peak() -> None:
    """Begin the peak anew, from what is resident now; where that is not allowed the higher one stays."""
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5")


def measure(question: dict[str, Any], inputs: IO[bytes]) -> dict[str, Any]:
    """Time one model with one batch on one provider; a dict of `Times`, `providers` and `peak_bytes`.

    The peak, after the first calls, is over what the process had before it opened the file: interpreter, NumPy, ONNX
    Runtime and the inputs.

    Args:
        question: how.
        inputs: of the model, in the form of `numpy.savez`, in the order of the question's `names`.

    Raises:
        ConfigError: as `open_session`, or the model cannot run on these inputs.
    """
    choose_providers(question["provider"])  # imports ONNX Runtime, which is no part of the model's memory
    with np.load(inputs, allow_pickle=False) as file:
        arrays = {name: file[f"arr_{number}"] for number, name in enumerate(question["names"])}
    feed = Inputs(arrays, frozenset(question["batched"])).batch(question["batch_size"])
    inputs.close()
    _forget_peak()
    before = peak_bytes()
    path = Path(question["path"])
    session = open_session(path, question["provider"], question["threads"], spinning=True)
    try:
        for _ in range(_CALLS):
            session.run(None, feed)
        after = peak_bytes()  # before calls are timed: what they took is kept, 5 MB of a quick model's
        times = time_calls(session, feed, question["batch_size"], question["seconds"])
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise ConfigError(f"{path}: ONNX Runtime cannot run it on these inputs: {said(error)}") from None
    return asdict(times) | {
        "providers": session.get_providers(),
        "peak_bytes": None if before is None or after is None else after - before,
    }


def main() -> None:
    """Answer one question."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a provider prints is no answer
    asked = json.loads(sys.stdin.buffer.readline())
    try:
        answer = measure(asked, io.BytesIO(sys.stdin.buffer.read()))
    except DistillogError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": f"{asked['path']}: a batch of {asked['batch_size']} is more than the memory here: try less"}
    with answers:
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
