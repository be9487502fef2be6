# `make demo` installs what running needs; each other target sets up first what it needs besides.

PYTHON ?= python3

# The torch that `make setup` installs, before everything else. On Linux the default build may bring
# gigabytes of CUDA libraries; where only the CPU is wanted, name an index that has the CPU build:
#   make setup TORCH="torch==2.13.0 --index-url <index of CPU wheels>"
TORCH ?= torch==2.13.0

# On shared machines threads that spin while they wait for a neighbour's core cost several times more
# than the work itself; passive waiting is never much slower.
export OMP_WAIT_POLICY ?= passive

# Each worker of the tests, and each process that a test starts, would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
RUN := .venv/.ready-run
DEV := .venv/.ready-dev
DOCS := .venv/.ready-docs
SGLANG := build/sglang/.ready
BENCH ?= all

.DEFAULT_GOAL := help
.PHONY: help setup demo test sglang core-env test-core pythons test-slow test-whole test-gpu lint mutants format docs site check bench bench-check clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(RUN) $(DEV) $(DOCS) $(SGLANG)  ## Make .venv with everything that the other targets need.

# Each runs again when the dependencies may have changed.
$(RUN): pyproject.toml
	@echo "Setting up .venv to run: 1.3 GB with the CPU build of torch, some more with CUDA libraries;"
	@echo "two to five minutes the first time."
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(DEV): $(RUN)
	@echo "Adding what tests and checks need: 1.8 GB and some minutes more, the first time."
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(DOCS): $(RUN)
	@echo "Adding what the site needs: 100 MB and a minute, the first time."
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

# The algorithms in it are Python that runs on a CPU, whatever the wheel is built for; nothing of it is
# installed. 39 MB.
$(SGLANG): | $(RUN)
	@mkdir -p build/sglang
	@if $(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 \
		--platform manylinux_2_34_x86_64 --dest build/sglang sglang==0.5.23; then touch $@; \
	else echo "warning: the wheel of SGLang cannot be had: tests of its own code are skipped" >&2; fi

demo: $(RUN)  ## Show parallel decoding with the embedded model, offline.
	$(BIN)/dllm demo

test: $(DEV) $(SGLANG)  ## Run the fast tests.
	$(BIN)/python -m pytest --numprocesses auto

# The oldest Python that is supported and one that is newer than what most have.
PYTHONS ?= 3.10 3.13
VERSION = import sys; print("%d.%d" % sys.version_info[:2])
# What runs a step, and what a version of Python may do otherwise: types, dataclasses, text of errors.
CORE = tests/state tests/constraints tests/schedulers tests/decoding tests/models/test_load.py tests/test_*.py

core-env:  # A .venv-VERSION for PYTHON with what the core of the fast tests needs.
	@set -e; env=.venv-$$($(PYTHON) -c '$(VERSION)'); \
	[ -x $$env/bin/python ] || $(PYTHON) -m venv $$env; \
	if [ ! $$env/.ready -nt pyproject.toml ]; then \
		echo "Setting up $$env: 2 to 6 GB, by the build of torch, and some minutes the first time."; \
		$$env/bin/python -m pip install --quiet $(TORCH); \
		$$env/bin/python -m pip install --quiet --editable '.[test]'; \
		touch $$env/.ready; \
	fi

test-core: core-env  ## Run the core of the fast tests with PYTHON, in a .venv-VERSION of its own.
	.venv-$$($(PYTHON) -c '$(VERSION)')/bin/python -m pytest --numprocesses auto $(CORE)

# STEP=core-env only makes their .venv-VERSION.
STEP ?= test-core

pythons:  ## Run the core of the fast tests with each of PYTHONS that is installed.
	@set -e; for version in $(PYTHONS); do \
		found=$$(command -v python$$version || true); \
		if [ -z "$$found" ] || ! $$found -c "" 2>/dev/null; then \
			found=$$(ls -d "$$(pyenv root 2>/dev/null)"/versions/$$version.*/bin/python 2>/dev/null | tail -n 1); \
		fi; \
		if [ -z "$$found" ]; then echo "Python $$version is not installed here: not tested with it"; continue; fi; \
		echo "Python $$version: $$found"; \
		if ! $(MAKE) --no-print-directory core-env PYTHON="$$found" TORCH="$(TORCH)"; then \
			echo "warning: its packages cannot be installed here: not tested with it" >&2; continue; \
		fi; \
		if [ $(STEP) = core-env ]; then continue; fi; \
		$(MAKE) --no-print-directory test-core PYTHON="$$found" TORCH="$(TORCH)"; \
	done

sglang: $(SGLANG)  ## Bring the wheel of SGLang whose algorithms some tests run.

test-slow: $(DEV) $(SGLANG)  ## Run the tests that take longer.
	$(BIN)/python -m pytest --numprocesses auto -m "slow and not gpu"

test-whole: $(DEV) $(SGLANG)  ## Run the slow tests with all of each product and all random cases; an hour.
	$(BIN)/python -m pytest --numprocesses auto -m "slow and not gpu" --whole

test-gpu: $(DEV)  ## Run the tests that need a CUDA device.
	$(BIN)/python -m pytest -m gpu

lint: $(DEV)  ## Check style, format and types.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

mutants: $(DEV)  ## Plant each fault of tests/mutants into a copy; some test must fail for it.
	$(BIN)/python -m tests.mutants

format: $(DEV)  ## Format the code and mend what ruff can mend.
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(RUN)  ## Write the pages anew that come from the code.
	$(BIN)/python docs/generate.py

site: $(DOCS)  ## Build the site into site/; a link that leads nowhere is an error.
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

check: lint test  ## Everything that must hold before a commit.

bench: $(RUN)  ## Measure speed and memory into bench/; BENCH=name takes one file of benchmarks/.
	$(BIN)/python -m benchmarks$(if $(filter all,$(BENCH)),,.$(BENCH)) $(ARGS)

bench-check: $(RUN)  ## Compare operation counts and ratios with the committed ones; ARGS=--renew writes them.
	$(BIN)/python -m benchmarks.check $(ARGS)

clean:  ## Remove what was built or cached; .venv stays.
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*/*' -type d -prune -exec rm -rf {} +
