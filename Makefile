# Two commands for a fresh machine: make quickstart, make test. Everything else is for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export DS_ACCELERATOR ?= cpu
# tests of one file stay together: they share what they begin with
WORKERS ?= --numprocesses logical --maxprocesses 4 --dist loadfile

.PHONY: setup quickstart test test-compiled test-all lint bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

quickstart: setup
	PATH="$(abspath $(BIN)):$$PATH" sh pipelines/quickstart.sh

test: setup
	$(BIN)/python -m pytest $(WORKERS)

test-compiled: setup
	$(BIN)/python .ci/compiled.py

test-all: setup
	$(BIN)/python -m pytest $(WORKERS) -m "slow or not slow"

lint: setup
	$(BIN)/ruff format --check proteinlm tests benchmarks setup.py .ci
	$(BIN)/ruff check proteinlm tests benchmarks setup.py .ci
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
