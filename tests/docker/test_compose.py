"""compose.yaml holds its containers to what they need, and says how to get along with it; no engine is asked."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
OURS = [name for name in SERVICES if name != "kafka"]
ONCE = ["runs-folder", "prepare", "topics"]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
DOCS = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert any(place.startswith("/tmp") for place in service["tmpfs"])
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["CHOWN"] if name == "runs-folder" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True  # as PID 1 a program that has set no handler yet would not hear SIGTERM
    assert re.fullmatch(r"\d+g", service["mem_limit"])
    assert service["pids_limit"] > 0
    assert service["logging"]["driver"] == "json-file"
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])
    assert ("user" in service) == (name == "runs-folder")  # all others are who their image says


@pytest.mark.parametrize("name", OURS)
def test_an_image_of_ours_is_built_for_whichever_service_comes_first(name: str) -> None:
    service = SERVICES[name]
    assert service["image"] == f"distillog-{name}"  # of one name for two, `up --build` would take whichever came last
    assert f"AS {service['build']['target']}\n" in DOCKERFILE
    given = set(service["build"]["args"])
    assert {"PYTHON_IMAGE", "UID", "GID"} <= given <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))


def test_what_may_fail_by_accident_is_started_again_and_not_for_ever() -> None:
    restarts = {name: SERVICES[name].get("restart") for name in OURS}
    assert restarts == {name: None if name in ONCE else "on-failure:5" for name in OURS}


def test_kafka_does_not_drown_what_the_others_say() -> None:
    assert [name for name in SERVICES if SERVICES[name].get("attach") is False] == ["kafka"]


def test_whoever_works_for_long_is_asked_for_its_health_inside_of_its_container() -> None:
    assert [name for name in OURS if "healthcheck" in SERVICES[name]] == ["feed", "teacher", "student"]
    for name in ("feed", "teacher", "student"):
        known = {key: value for key, value in SERVICES[name]["environment"].items() if key.endswith("_METRICS_PORT")}
        assert set(known.values()) == {9400}


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check_succeeds_only_where_a_loop_goes_round(status: int | None, code: int) -> None:
    _, _, _, program = SERVICES["teacher"]["healthcheck"]["test"]

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        program = program.replace("9400", str(server.server_port))
        if status:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        else:
            server.socket.close()
        checked = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
        if status:
            server.shutdown()
    assert checked.returncode == code


def test_the_large_layers_do_not_depend_on_the_user_whose_number_an_image_has() -> None:
    for stage in DOCKERFILE.split("\nFROM ")[1:]:
        if re.match(r"\S+ AS (teacher|student)\n", stage):
            assert stage.index("COPY --from=") < stage.index("ARG UID")
            assert re.search(r"^USER \$UID:\$GID$", stage, re.M)  # a name is nothing that `runAsNonRoot` can check
        else:
            assert "ARG UID" not in stage


def test_all_that_is_packaged_is_sent_to_the_engine() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packaged = {name.partition(".")[0] for name in setuptools["packages"]}
    packaged |= {f"{name}.py" for name in setuptools.get("py-modules", ())}
    sent = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M))
    assert packaged <= sent


def test_a_users_own_additions_are_not_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"/compose.override.yaml", "/.env"} <= set(ignored)


def test_every_variable_is_documented() -> None:
    variables = set(re.findall(r"\$\{(\w+)", TEXT))
    table = set(re.findall(r"`([A-Z_]+)`", "".join(re.findall(r"^\| (`[A-Z].*?) \|", DOCS, re.M))))
    assert variables <= table
