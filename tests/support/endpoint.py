"""Asking the endpoint of `--metrics-port`, as Prometheus and a kubelet do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families
from support.processes import Child

PREFIX = "distillog_"


@dataclass(frozen=True, slots=True)
class Asked:
    """An endpoint, by its address."""

    url: str

    @classmethod
    def of(cls, child: Child) -> Asked:
        """Of a process that was started with `--metrics-port`."""
        return cls.said(child.wait_for(r"metrics at http://\S+/metrics"))

    @classmethod
    def said(cls, line: str) -> Asked:
        """By the line that tells it."""
        return cls(line.removeprefix("metrics at ").removesuffix("/metrics"))

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def get(self, path: str, method: str = "GET", timeout: float = 10.0) -> tuple[int, str]:
        """Status and text; OSError where there is no answer in time."""
        try:
            with urlopen(Request(self.url + path, method=method), timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def answers(self, path: str, code: int = 200, timeout: float = 10.0) -> bool:
        """Whether there is an answer of this status in time."""
        try:
            return self.get(path, timeout=timeout)[0] == code
        except OSError:
            return False

    def samples(self) -> list[Any]:
        """All that a scrape finds."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return [sample for family in families for sample in family.samples]

    def values(self) -> dict[str, float]:
        """Name without `distillog_` -> value, whatever the labels."""
        return {sample.name.removeprefix(PREFIX): sample.value for sample in self.samples()}

    def labels(self) -> set[tuple[tuple[str, str], ...]]:
        """Of all samples, each set of labels once."""
        return {tuple(sorted(sample.labels.items())) for sample in self.samples()}
