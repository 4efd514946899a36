"""How ONNX sessions are opened: on the provider that was asked for, and without telemetry."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from support.models import classifier

from pipeline.onnx_runtime import choose_providers, open_session
from schemas.errors import ConfigError, TeacherRejected

ROOT = Path(__file__).parents[2]


def test_an_unknown_provider_names_the_nearest() -> None:
    assert choose_providers("cpu") == ["CPUExecutionProvider"]
    assert choose_providers("auto")[-1] == "CPUExecutionProvider"
    with pytest.raises(ConfigError, match="unknown execution provider 'cuba': did you mean 'cuda'"):
        choose_providers("cuba")


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    for refusal in (ConfigError, TeacherRejected):
        with pytest.raises(refusal, match="ONNX Runtime cannot load it") as caught:
            open_session(path, refusal=refusal)
        assert "\n" not in str(caught.value)


@pytest.fixture
def listed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA provider that is installed and does not load: ONNX Runtime goes on without it, on the CPU."""
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)


@pytest.mark.usefixtures("listed_only")
def test_a_provider_that_does_not_load_is_refused_instead_of_running_on_the_cpu(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx")
    with pytest.raises(
        ConfigError, match="--provider cuda: CUDAExecutionProvider does not load here, so CPUExec"
    ) as told:
        open_session(path, "cuda")
    assert "\n" not in str(told.value)


@pytest.mark.usefixtures("listed_only")
def test_auto_goes_on_without_a_provider_that_does_not_load_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = classifier(tmp_path / "m.onnx")
    with caplog.at_level(logging.WARNING):
        assert open_session(path, "auto").get_providers() == ["CPUExecutionProvider"]
    told = "CUDAExecutionProvider is installed but does not load here; running on CPUExecutionProvider"
    assert [record.getMessage() for record in caplog.records] == [told]


LEAVES_TRACES = "import onnxruntime, time; time.sleep(1)"
OURS = {
    "a teacher": "import teacher_service.models.session as m; m.open_session",
    "a student": "import student_trainer.export as m; m.open_session",
}


def traces(code: str, folder: Path, **env: str) -> list[str]:
    """The files that a fresh process leaves in a fresh home."""
    folder.mkdir()
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    fresh = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=ROOT, env=inherited | fresh | env, timeout=120, check=True, capture_output=True)
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and "onnxruntime" in str(path))


def test_onnx_runtime_leaves_no_traces_in_the_users_home(tmp_path: Path) -> None:
    if "deviceid" not in traces(LEAVES_TRACES, tmp_path / "bare"):
        pytest.skip("this ONNX Runtime has no telemetry")
    path = classifier(tmp_path / "m.onnx")
    for who, opened in OURS.items():
        code = f"import pathlib, time; {opened}(pathlib.Path({str(path)!r})); time.sleep(1)"
        assert traces(code, tmp_path / who) == []


def test_who_wants_telemetry_may_have_it(tmp_path: Path) -> None:
    code = "import os, pipeline.onnx_runtime; assert os.environ['ORT_DISABLE_TELEMETRY'] == '0'"
    traces(code, tmp_path / "home", ORT_DISABLE_TELEMETRY="0")
