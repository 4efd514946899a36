"""Metrics of a user's own, honest ones and ones with every fault."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Spread:
    """Largest less smallest number of an output, times a factor; how many samples have a label."""

    def __init__(self, of: str, factor: float = 1.0) -> None:
        self.of, self.factor = of, factor
        self.low, self.high, self.labelled = math.inf, -math.inf, 0

    def update(self, outputs: Arrays, inputs: Arrays, labels: NDArray[np.int64]) -> None:
        """One batch; all arrays have a row for each sample."""
        assert type(outputs) is type(inputs) is dict
        assert {len(each) for each in (*outputs.values(), *inputs.values())} == {len(labels)}
        self.low = min(self.low, float(outputs[self.of].min()))
        self.high = max(self.high, float(outputs[self.of].max()))
        self.labelled += int((labels >= 0).sum())

    def compute(self) -> dict[str, float]:
        """Both figures."""
        return {"spread": np.float64(self.factor * (self.high - self.low)), "labelled": self.labelled}


class Faulty:
    """Fails in the way it is asked to."""

    def __init__(self, how: str = "") -> None:
        if how == "made":
            raise ValueError("not today")
        self.how = how

    def update(self, outputs: Arrays, inputs: Arrays, labels: NDArray[np.int64]) -> None:
        """Raises, leaves, or writes into what is others'."""
        if self.how == "update":
            raise KeyError("logits")
        if self.how == "exit":
            sys.exit(0)
        if self.how == "write":
            outputs["logits"][:] = 0

    def compute(self) -> Any:
        """Raises, or gives no figures."""
        if self.how == "compute":
            raise ZeroDivisionError
        values: dict[str, Any] = {
            "list": [1.0],
            "nan": {"area": math.nan},
            "endless": {"area": 10**400},
            "text": {"area": "1.0"},
            "bool": {"area": True},
            "number": {3: 1.0},
            "lines": {"a\nb": 1.0},
            "taken": {"num_samples": 1.0},
            "other's": {"accuracy": 1.0},
            "chance": {"num_commonest": 2},
        }
        return values.get(self.how, {})


def without_compute() -> Any:
    """No metric."""
    return Unfinished()


class Unfinished:
    """Has no compute()."""

    def update(self, outputs: Arrays, inputs: Arrays, labels: NDArray[np.int64]) -> None:
        """Nothing."""
