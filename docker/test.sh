#!/usr/bin/env bash
# `make compose-test`: runs compose.yaml for real, as it is and then with three teachers; of these one is killed, and the
# student's process.
# Skips where no Docker engine answers. docs/docker.md names what the environment may set.
set -euo pipefail
cd "$(dirname "$0")/.."

BUILD_TIMEOUT=${COMPOSE_TEST_BUILD_TIMEOUT:-3600} # seconds
RUN_TIMEOUT=${COMPOSE_TEST_RUN_TIMEOUT:-600}      # seconds

say() { echo "compose-test: $*"; }
fail() {
    say "FAILED: $*" >&2
    exit 1
}

if ! timeout 30 docker info >/dev/null 2>&1; then
    say "skipped: no Docker engine answers"
    exit 0
fi
if ! docker compose version >/dev/null 2>&1; then
    say "skipped: this Docker has no \`docker compose\`"
    exit 0
fi

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

scratch=$(mktemp -d)
log=$scratch/compose.log
export COMPOSE_PROJECT_NAME=distillog-test-$$
if [ "$(id -u)" != 0 ]; then # what the containers write has to be removed in the end
    export HOST_UID HOST_GID
    HOST_UID=$(id -u) HOST_GID=$(id -g)
fi

clean_up() {
    local status=$?
    trap - EXIT
    if [ "$status" != 0 ]; then
        tail -n 30 "$log" || true
        docker compose ps --all || true
        docker compose logs --no-color --tail 30 || true
    fi
    timeout 120 docker compose down --volumes --remove-orphans --timeout 10 >/dev/null 2>&1 ||
        say "could not remove the project $COMPOSE_PROJECT_NAME" >&2
    rm -rf "$scratch"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# up NAME [ARGUMENTS]: start everything on empty volumes; ends when the student's container has been started
up() {
    export RUNS_FOLDER=$scratch/$1 KAFKA_PORT # the engine makes the folder, so that it belongs to root at first
    KAFKA_PORT=$(free_port)
    timeout 120 docker compose down --volumes --timeout 10 >>"$log" 2>&1
    timeout "$RUN_TIMEOUT" docker compose up --build --detach "${@:2}" >>"$log" 2>&1 || fail "docker compose up ${*:2}"
}

# inspect FORMAT: of the student's container
inspect() { docker inspect --format "$1" "$(docker compose ps --all --quiet student)"; }

# Not by `docker wait`, which returns at the first end of one that is started again.
wait_for_student() {
    local end=$((SECONDS + RUN_TIMEOUT))
    until [ "$(inspect '{{.State.Status}}')" = exited ]; do
        [ "$SECONDS" -lt "$end" ] || fail "the student has not ended after $RUN_TIMEOUT s"
        sleep 0.5
    done
    [ "$(inspect '{{.State.ExitCode}}')" = 0 ] || fail "the student ended with $(inspect '{{.State.ExitCode}}')"
}

# Looks at what the student left in ./runs, and lets the exported file classify the test images.
check_student() {
    [ -s "$RUNS_FOLDER/digits-student/student.onnx" ] || fail "no student.onnx in ./runs"
    compgen -G "$RUNS_FOLDER/digits-student/checkpoints/*/checkpoint.json" >/dev/null || fail "no checkpoint in ./runs"
    timeout 120 docker compose run --rm --no-deps --no-TTY student python - <<'PYTHON' || fail "the student is not right"
import json
import sys

import numpy as np
import onnxruntime

from pipeline.datasets import open_dataset

report = json.load(open("runs/digits-student/report.json"))
data = open_dataset("digits?split=test")
ids = np.arange(data.num_samples)
session = onnxruntime.InferenceSession("runs/digits-student/student.onnx")
logits = session.run(["logits"], {"image": data.read(ids).fields["image"]})[0]
accuracy = float((logits.argmax(1) == data.labels(ids)).mean())
print(
    f"compose-test: {report['steps']} steps, accuracy {report['evaluation']['accuracy']:.3f}, of student.onnx "
    f"{accuracy:.3f}, longest wait {report['timing']['longest_wait_s']:.1f} s, weights {report['weights_sha256'][:16]}"
)
sys.exit(not (report["finished"] and report["evaluation"]["accuracy"] > 0.85 and accuracy > 0.85))
PYTHON
}

weights() { grep -o '"weights_sha256": "[0-9a-f]*"' "$RUNS_FOLDER/digits-student/report.json"; }

# lag: as a teacher that lives on sees it
lag() { timeout 30 docker compose exec --no-TTY --index 2 teacher distillog topics lag digits 2>/dev/null; }
labelled() { sed -n 's/.*: \([0-9]*\) orders labelled.*/\1/p' <<<"$1" | grep . || echo 0; }
num_members() { sed -n 's/.* \([0-9]*\) members$/\1/p' <<<"$1" | grep . || echo 0; }

say "builds the images"
SECONDS=0
timeout "$BUILD_TIMEOUT" docker compose build >>"$log" 2>&1 || fail "docker compose build"
say "built after $SECONDS s: $(docker image ls --format '{{.Repository}} {{.Size}}' --filter reference=distillog-teacher \
    --filter reference=distillog-student | sort -u | paste -sd ',' | sed 's/,/, /g')"
if docker run --rm distillog-teacher python -c 'import torch' 2>/dev/null; then fail "the teacher's image holds PyTorch"; fi
for image in distillog-teacher distillog-student; do
    docker run --rm "$image" python -c 'import PIL, sklearn, soundfile, tokenizers' || fail "$image lacks what datasets need"
    user=$(docker image inspect --format '{{.Config.User}}' "$image")
    [[ $user =~ ^[1-9][0-9]*:[0-9]+$ ]] || fail "$image runs as '$user', which is no number but root's"
done

say "docker compose up --build"
SECONDS=0
up plain
wait_for_student
check_student
one_teacher=$(weights)
say "passed after $SECONDS s"

# Three times the orders that the student needs: it is in their middle when the teacher dies, however fast they are.
printf 'services: {topics: {environment: {DISTILLOG_TOPICS_CREATE_EPOCHS: 600}}}\n' >"$scratch/longer.yaml"
own=
if [ -e compose.override.yaml ]; then own=:compose.override.yaml; fi # which only an unset COMPOSE_FILE brings by itself
export COMPOSE_FILE=${COMPOSE_FILE:-compose.yaml$own}:$scratch/longer.yaml
say "docker compose up --build --scale teacher=3, and a teacher and the student's process killed meanwhile"
SECONDS=0
up killed --scale teacher=3
while reading=$(lag) || true; [ "$(num_members "$reading")" -lt 3 ] || [ "$(labelled "$reading")" -eq 0 ]; do
    [ "$SECONDS" -lt "$RUN_TIMEOUT" ] || fail "no labels of three teachers after $SECONDS s"
    sleep 0.5
done
docker kill --signal KILL "$COMPOSE_PROJECT_NAME-teacher-1" >/dev/null
say "killed a teacher after $(labelled "$reading") of 3600 orders"
until compgen -G "$RUNS_FOLDER/digits-student/checkpoints/*/checkpoint.json" >/dev/null; do
    [ "$SECONDS" -lt "$RUN_TIMEOUT" ] || fail "no checkpoint after $SECONDS s"
    sleep 0.1
done
docker compose exec --no-TTY student sh -c 'kill -9 -1' >>"$log" 2>&1 || true # all but PID 1, and this shell among them
wait_for_student
[ "$(inspect '{{.RestartCount}}')" = 1 ] || fail "the student was killed, and started $(inspect '{{.RestartCount}}') times again"
check_student
[ "$(weights)" = "$one_teacher" ] || fail "three teachers of which one was killed gave other weights than one teacher"
reading=$(lag)
say "$(labelled "$reading") orders are labelled, $(num_members "$reading") teachers work"
say "passed after $SECONDS s"
