"""Builds a kustomization of the few features that docker/kubernetes uses, and refuses every other one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

HEADER = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
FEATURES = {"resources", "namespace", "images", "configMapGenerator", "generatorOptions", "patches"}


def build(folder: Path) -> list[Manifest]:
    """What `kustomize build FOLDER` prints, in the order of the files.

    Raises:
        ValueError: a feature that is not known here, or a file that is no kustomization.
    """
    text = (folder / "kustomization.yaml").read_text(encoding="utf-8")
    spec: dict[str, Any] = yaml.safe_load(text)
    _only(spec, FEATURES | set(HEADER))
    if {key: spec.get(key) for key in HEADER} != HEADER:
        raise ValueError(f"{folder}: not a kustomization of {HEADER['apiVersion']}")
    manifests: list[Manifest] = []
    for name in spec.get("resources", []):
        path = folder / name
        manifests += build(path.resolve()) if path.is_dir() else documents(path)
    manifests += _config_maps(folder, spec)
    for patch in spec.get("patches", []):
        _patch(manifests, patch)
    for manifest in manifests:
        _rename_images(manifest, spec.get("images", []))
        if namespace := spec.get("namespace"):
            manifest["metadata"]["namespace"] = namespace
    return manifests


def documents(path: Path) -> list[Manifest]:
    """The manifests of one file."""
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each is not None]


def pod_templates(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """`Kind/name` and pod spec of everything that makes pods."""
    for manifest in manifests:
        if "template" in manifest.get("spec", {}):
            yield f"{manifest['kind']}/{manifest['metadata']['name']}", manifest["spec"]["template"]["spec"]


def _only(given: dict[str, Any], known: set[str]) -> None:
    if unknown := set(given) - known:
        raise ValueError(f"unknown to this reader of kustomizations: {', '.join(sorted(unknown))}")


def _config_maps(folder: Path, spec: dict[str, Any]) -> Iterator[Manifest]:
    options = spec.get("generatorOptions", {})
    _only(options, {"disableNameSuffixHash", "labels"})
    for each in spec.get("configMapGenerator", []):
        _only(each, {"name", "envs", "files"})
        if options.get("disableNameSuffixHash") is not True:
            raise ValueError("names with a hash of the content are unknown to this reader of kustomizations")
        data = {name: (folder / name).read_text(encoding="utf-8") for name in each.get("files", [])}
        for name in each.get("envs", []):
            for line in (folder / name).read_text(encoding="utf-8").splitlines():
                if line and not line.startswith("#"):
                    key, _, data[key] = line.partition("=")
        metadata = {"name": each["name"], "labels": dict(options.get("labels", {}))}
        yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _patch(manifests: list[Manifest], patch: dict[str, Any]) -> None:
    """Apply a JSON patch of `add` and `replace` in mappings to all manifests of a kind."""
    _only(patch, {"target", "patch"})
    _only(patch["target"], {"kind"})
    targets = [each for each in manifests if each["kind"] == patch["target"]["kind"]]
    for operation in yaml.safe_load(patch["patch"]):
        _only(operation, {"op", "path", "value"})
        *way, last = operation["path"].strip("/").split("/")
        for target in targets:
            place: Any = target
            for step in way:
                place = place[int(step)] if isinstance(place, list) else place[step]
            if operation["op"] not in ("add", "replace") or (operation["op"] == "replace" and last not in place):
                raise ValueError(f"unknown to this reader of kustomizations, or without a target: {operation}")
            place[last] = copy.deepcopy(operation["value"])


def _rename_images(manifest: Manifest, images: list[dict[str, str]]) -> None:
    for image in images:
        _only(image, {"name", "newName", "newTag"})
    names = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in images}
    for _, pod in pod_templates([manifest]):
        for container in pod["containers"]:
            container["image"] = names.get(container["image"], container["image"])
