"""What a student's ONNX file says of itself."""

from __future__ import annotations

import json
from typing import Any

from schemas.records import ViewSpec
from student_trainer.learning.students import Network


def metadata_of(network: Network, view: ViewSpec) -> dict[str, str]:
    """Return what a student's ONNX file says of its classes and its input: no names of runs, no paths, no times."""
    inputs = []
    for each in network.inputs:
        taken: dict[str, Any] = {"field": each.name, "dtype": each.dtype, "shape": each.shape}
        if len(each.shape) == 3:
            taken |= {"layout": "nchw"}
            if each.dtype == "uint8":
                taken |= {"scale": 1.0}  # the graph brings bytes to [0, 1] itself
        inputs.append(taken)
    return {
        "distillog.class_names": json.dumps(network.class_names),
        "distillog.inputs": json.dumps(inputs),
        "distillog.view": json.dumps({"name": view.name, "params": view.params}, sort_keys=True),
    }
