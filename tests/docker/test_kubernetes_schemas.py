"""The manifests are built, and valid for Kubernetes, KEDA and the strictest of the Pod Security Standards."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support.keda import SCHEMAS
from support.kustomize import build, documents, pod_templates

ROOT = Path(__file__).parents[2]
BASE, EXAMPLE = (ROOT / "docker" / "kubernetes" / name for name in ("base", "example"))
BUILT = {
    f"{folder.name}: {each['kind']}/{each['metadata']['name']}": each
    for folder in (BASE, EXAMPLE)
    for each in build(folder)
}
PODS = dict(pod_templates(build(BASE)))
VERSIONS = ["1.31", "1.34", "1.37"]
"""of Kubernetes; 1.31 is the first whose jobs have `podFailurePolicy` for good"""


def check(manifest: dict[str, Any], version: str) -> None:
    if manifest["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
    else:
        assert kubernetes_validate.validate(manifest, version, strict=True) == version


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", BUILT)
def test_a_manifest_is_valid(name: str, version: str) -> None:
    check(BUILT[name], version)


SPOILT = {
    "Deployment/teacher-cpu": ("spec", "template", "spec", "terminationGracePeriod"),
    "Job/student": ("spec", "backoffLimits"),
    "ScaledObject/teacher-gpu": ("spec", "triggers", 0, "metadata", "lagTreshold"),
    "TriggerAuthentication/kafka": ("spec", "secretTargetRef", 0, "secret"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_misspelt_field_is_not(name: str) -> None:
    (manifest,) = (each for each in build(EXAMPLE) if f"{each['kind']}/{each['metadata']['name']}" == name)
    place: Any = manifest
    *way, last = SPOILT[name]
    for step in way:
        place = place[step]
    place[last] = 1
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        check(manifest, VERSIONS[-1])


KUSTOMIZE = next(
    (command for command in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(command[0])), []
)


@pytest.mark.skipif(not KUSTOMIZE, reason="neither kustomize nor kubectl is here")
@pytest.mark.parametrize("folder", [BASE, EXAMPLE], ids=["base", "example"])
def test_kustomize_builds_what_is_checked_here(folder: Path) -> None:
    printed = subprocess.run([*KUSTOMIZE, str(folder)], capture_output=True, text=True, check=True, timeout=60).stdout

    def key(manifest: dict[str, Any]) -> tuple[str, str]:
        return manifest["kind"], manifest["metadata"]["name"]

    assert sorted(yaml.safe_load_all(printed), key=key) == sorted(build(folder), key=key)


def test_a_feature_of_kustomize_that_is_not_checked_here_is_refused(tmp_path: Path) -> None:
    text = (BASE / "kustomization.yaml").read_text(encoding="utf-8")
    (tmp_path / "kustomization.yaml").write_text(text + "namePrefix: my-\n", encoding="utf-8")
    with pytest.raises(ValueError, match="namePrefix"):
        build(tmp_path)


def test_every_file_of_the_base_is_in_it() -> None:
    files = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(documents(BASE / "kustomization.yaml")[0]["resources"]) == files


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_let_into_a_namespace_that_restricts_all(name: str) -> None:
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "name"}
    assert {key for volume in pod["volumes"] for key in volume} <= allowed
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", PODS)
def test_a_pod_says_what_it_needs_and_mounts_what_it_declares(name: str) -> None:
    (container,) = PODS[name]["containers"]
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in PODS[name]["volumes"]}
    assert "tmp" in mounted  # the root is read-only
