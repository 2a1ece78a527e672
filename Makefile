# Every target makes the virtual environment itself when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test check lint bench torture format clean

quickstart: $(VENV)/.installed  ## train a small language model of Python, about two minutes
	$(BIN)/danlu train quickstart

test: lint  ## prove the system: format, lint, types, imports, tests, doctests
	$(BIN)/python -m pytest --numprocesses auto

check: test

lint: $(VENV)/.dev
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .

bench: $(VENV)/.bench  ## measure, with peers in the same run
	$(BIN)/python -m benchmarks

torture: $(VENV)/.dev  ## slow trials: kills and corruption at random moments
	$(BIN)/python -m pytest torture

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev]'
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(INSTALL) --editable '.[bench]'
	touch $@
