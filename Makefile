# One documented verb per task; CI runs the same verbs.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup check test unit
help:     ## print this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */\1\t/' | expand -t 10

setup: .venv/.installed ## system packages, virtual environment, package, assets (skips what is there)

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

check: .venv/.installed ## ruff, strict types, import rules
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: .venv/.installed ## only the tests that need no VM
	$(BIN)/pytest -m 'not vm' -q

test: setup ## every test
	$(BIN)/pytest
