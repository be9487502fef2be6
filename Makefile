# `make setup` once, then `make demo`, `make test`, `make check`: each sets up first if it must.

PYTHON ?= python3

# The torch that `make setup` installs, before everything else. On Linux the default build may bring
# gigabytes of CUDA libraries; where only the CPU is wanted, name an index that has the CPU build:
#   make setup TORCH="torch==2.13.0 --index-url <index of CPU wheels>"
TORCH ?= torch==2.13.0

# On shared machines threads that spin while they wait for a neighbour's core cost several times more
# than the work itself; passive waiting is never much slower.
export OMP_WAIT_POLICY ?= passive

BIN := .venv/bin
READY := .venv/.ready
BENCH ?= all

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-gpu lint format docs check bench clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(READY)  ## Make .venv with everything that the other targets need.

# Runs again when the dependencies may have changed.
$(READY): pyproject.toml
	@echo "Setting up .venv: this takes some minutes the first time."
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[eval,dev]'
	@touch $@

demo: $(READY)  ## Show parallel decoding with the embedded model, offline.
	$(BIN)/dllm demo

test: $(READY)  ## Run the fast tests.
	$(BIN)/python -m pytest --numprocesses auto

test-slow: $(READY)  ## Run the tests that take longer.
	$(BIN)/python -m pytest --numprocesses auto -m "slow and not gpu"

test-gpu: $(READY)  ## Run the tests that need a CUDA device.
	$(BIN)/python -m pytest -m gpu

lint: $(READY)  ## Check style, format and types.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(READY)  ## Format the code and mend what ruff can mend.
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(READY)  ## Write the generated part of docs/reference/schedulers.md anew.
	$(BIN)/dllm methods --markdown --into docs/reference/schedulers.md

check: lint test  ## Everything that must hold before a commit.

bench: $(READY)  ## Measure speed and memory into bench/; BENCH=name takes one file of benchmarks/.
	$(BIN)/python -m benchmarks$(if $(filter all,$(BENCH)),,.$(BENCH)) $(ARGS)

clean:  ## Remove what was built or cached; .venv stays.
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
