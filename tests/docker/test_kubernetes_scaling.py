"""The autoscaler's numbers: they find the size that a student needs, and do not follow the feeder's sawtooth."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
from support.autoscaler import START, Autoscaler, Day, live
from support.kustomize import documents

from pipeline.follow import DEFAULT_LEAD

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "kubernetes.md"
FILE = ROOT / "docker" / "kubernetes" / "base" / "autoscaling.yaml"
SCALED = {each["metadata"]["name"]: each for each in documents(FILE)}
PARTITIONS = 64
HOUR = 3600
NEVER = 10**9
"""orders of a stream that does not end"""

PACES = {"slow": (2.14, 0.6), "usual": (8.0, 3.0), "tight": (8.0, 2.7), "fast": (40.0, 6.0), "one": (3.0, 10.0)}
"""orders per second of the student and of one worker; the slowest has a cycle of 120 s"""


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("pace", PACES)
def test_a_fleet_grows_to_what_the_student_needs_and_then_stands_still(name: str, pace: str) -> None:
    student, worker = PACES[pace]
    fleet = live(SCALED[name], Day(PARTITIONS, NEVER, worker, lambda now: student), 6 * HOUR)
    assert len(set(fleet.replicas[-4 * HOUR :])) == 1
    assert not any(fleet.starved[-4 * HOUR :])
    needed = math.ceil(student / worker)
    assert needed <= fleet.replicas[-1] <= math.ceil(needed * 1.5)


def test_keda_and_kubernetes_left_to_themselves_follow_it() -> None:
    scaled = copy.deepcopy(SCALED["teacher-gpu"])
    scaled["spec"]["triggers"][0]["metadata"]["lagThreshold"] = "10"
    scaled["spec"]["cooldownPeriod"] = 300
    scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] = {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "policies": [
                {"type": "Pods", "value": 4, "periodSeconds": 15},
                {"type": "Percent", "value": 100, "periodSeconds": 15},
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 300,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
        },
    }
    student, worker = PACES["usual"]
    fleet = live(scaled, Day(PARTITIONS, NEVER, worker, lambda now: student), 2 * HOUR)
    assert max(fleet.replicas) == scaled["spec"]["maxReplicaCount"] > 2 * math.ceil(student / worker)
    student, worker = 0.5, 3.0  # one worker is enough for six such students
    fleet = live(scaled, Day(PARTITIONS, NEVER, worker, lambda now: student), 6 * HOUR)
    assert len(set(fleet.replicas[-4 * HOUR :])) > 2


@pytest.mark.parametrize("name", SCALED)
def test_a_student_that_evaluates_or_moves_to_another_node_moves_no_worker(name: str) -> None:
    student, worker = PACES["usual"]

    def pausing(now: int) -> float:
        return 0.0 if now % HOUR > HOUR - 600 else student

    fleet = live(SCALED[name], Day(PARTITIONS, NEVER, worker, pausing), 6 * HOUR)
    assert len(set(fleet.replicas[-4 * HOUR :])) == 1


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("follow", [True, False], ids=["followed", "all at once"])
def test_a_stream_that_is_labelled_leaves_no_worker(name: str, follow: bool) -> None:
    student, worker = PACES["usual"]
    day = Day(PARTITIONS, 50_000, worker, lambda now: student, follow)
    fleet = live(SCALED[name], day, 6 * HOUR)
    assert fleet.trained == day.orders
    assert max(fleet.replicas) == (SCALED[name]["spec"]["maxReplicaCount"] if not follow else 3)
    assert fleet.replicas[-1] == 0


@pytest.mark.parametrize("name", SCALED)
def test_the_numbers_are_those_of_the_feeders_own_thresholds(name: str) -> None:
    spec = SCALED[name]["spec"]
    low = DEFAULT_LEAD[0] * PARTITIONS
    assert int(spec["triggers"][0]["metadata"]["lagThreshold"]) == low * 3 // 4 // spec["maxReplicaCount"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    windows: list[Any] = [behavior[way]["stabilizationWindowSeconds"] for way in ("scaleUp", "scaleDown")]
    cycle = low / PACES["slow"][0]
    assert min(*windows, spec["cooldownPeriod"]) > 2 * cycle
    assert all(policy["periodSeconds"] >= START + 2 * cycle for policy in behavior["scaleUp"]["policies"])


def test_the_documented_numbers_are_these() -> None:
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|", DOCS.read_text(encoding="utf-8"), re.M))
    gpu, cpu = (SCALED[f"teacher-{kind}"]["spec"] for kind in ("gpu", "cpu"))
    up, later = (each["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleUp"] for each in (gpu, cpu))
    window = "stabilizationWindowSeconds"
    assert rows["`maxReplicaCount`"] == str(gpu["maxReplicaCount"])
    assert rows["`lagThreshold`"] == gpu["triggers"][0]["metadata"]["lagThreshold"]
    assert rows["`scaleUp` window"] == f"{up[window]} s, CPUs {later[window]} s"
    assert rows["`scaleUp` period"] == f"{up['policies'][0]['periodSeconds']} s"
    assert rows["`scaleDown` window, `cooldownPeriod`"] == f"{gpu['cooldownPeriod']} s"


def test_the_simulated_autoscaler_waits_out_its_windows() -> None:
    scaler = Autoscaler(SCALED["teacher-gpu"], PARTITIONS)
    up = SCALED["teacher-gpu"]["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleUp"]
    replicas = [0]
    for now in range(1200):
        replicas.append(scaler.step(now, 256, replicas[-1]))
    assert replicas.index(2) - replicas.index(1) > up["stabilizationWindowSeconds"]
    assert replicas.index(3) - replicas.index(2) == up["policies"][0]["periodSeconds"]
