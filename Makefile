# One documented verb per task; CI runs the same verbs. Every verb does the set-up it needs and skips what is there.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell scripts/find-python)
BIN := .venv/bin

# MicroVMs need root (KVM, userfaultfd, namespaces): a user with sudo is asked once.
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo --preserve-env)

# Development state stays inside the checkout, so that `make clean` removes everything but the cache of assets.
export PERDURE_HOME ?= $(CURDIR)/build/home

# Processes that tests are spread over (tests/conftest.py says how). Two of them run microVMs, each on its own node; where
# there is no KVM its emulated host takes up to 8 GB.
WORKERS ?= 3

.PHONY: help setup demo test unit check adk bench soak crash campaign many examples docs clean

help:     ## print this list
	@grep -hE '^[a-z]+: .*##|^[a-z]+:  *##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */\1\t/' | expand -t 10

build/system-packages.done: scripts/system-packages
	@mkdir -p build
	scripts/system-packages
	@touch $@

build/test-packages.done: scripts/system-packages
	@mkdir -p build
	scripts/system-packages --tests
	@touch $@

.venv/base.done: pyproject.toml | build/system-packages.done
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[build,offline]'
	@touch $@

.venv/dev.done: .venv/base.done
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

.venv/frameworks.done: .venv/dev.done
	$(BIN)/python -m pip install --quiet --editable '.[dev,frameworks]'
	@touch $@

setup: .venv/base.done ## system packages, virtual environment, package, assets
	$(SUDO) $(BIN)/fcrun setup

demo: setup ## a durable agent end to end: suspended, killed, recovered; with its proof
	$(SUDO) $(BIN)/python scripts/demo.py

test: .venv/frameworks.done build/test-packages.done setup ## every test, on the real Firecracker (KVM or the emulated host)
	$(SUDO) $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder --durations=100 --durations-min=5

unit: .venv/frameworks.done build/test-packages.done ## only the tests that need no VM
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope -m 'not vm'

check: .venv/dev.done ## ruff, strict types, import rules, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_docs.py --check

build/adk.done: pyproject.toml ## Google's ADK in a Python of its own: it takes as long to install as all the rest
	python3 -m venv build/adk && build/adk/bin/pip install --quiet --editable '.[adk,postgres]' \
	    hypothesis pytest pytest-asyncio pytest-timeout pytest-xdist && touch $@

adk: build/adk.done build/test-packages.done ## the tests of the integration of Google's ADK, which `make test` skips
	build/adk/bin/python -m pytest -q tests/integration/integrations/test_adk.py tests/integration/integrations/test_page.py

build/dbos.done: ## DBOS in a Python of its own: the replay road is measured beside it
	python3 -m venv build/dbos && build/dbos/bin/pip install --quiet dbos==3.4.0 && touch $@

build/litellm.done: ## LiteLLM's proxy in a Python of its own: the gateway is measured beside it
	python3 -m venv build/litellm && build/litellm/bin/pip install --quiet 'litellm[proxy]==1.108.7' && touch $@

bench: .venv/dev.done build/test-packages.done build/dbos.done build/litellm.done setup ## the figures, beside raw Firecracker in the same run; writes build/bench.json (PARTS="log replay": only these)
	$(SUDO) $(BIN)/python tests/performance/bench.py $(PARTS)

soak: .venv/dev.done setup ## 200 suspends and resumes of one sandbox that checks itself (SOAK_*: tests/performance/soak.py)
	$(SUDO) $(BIN)/python tests/performance/soak.py

crash: .venv/dev.done build/test-packages.done setup ## kill -9 of a server at each of its durable writes, of each part of a microVM, and at random (CRASH_*: docs/testing.md)
	status=0; \
	$(BIN)/python -m perdure.testing.crash || status=1; \
	$(BIN)/python -m perdure.testing.lostservers || status=1; \
	$(SUDO) $(BIN)/python -m perdure.testing.crash.vms || status=1; \
	exit $$status

campaign: .venv/dev.done build/test-packages.done ## the property tests with many examples each (EXAMPLES=1000)
	EXAMPLES=$${EXAMPLES:-1000} $(BIN)/python -m pytest -n $(WORKERS) -m 'hypothesis and not vm' -o timeout=3600

many: .venv/dev.done build/test-packages.done setup ## fifty sandboxes at once, also where processors are emulated
	$(SUDO) env PERDURE_TEST_MANY=$${PERDURE_TEST_MANY:-50} $(BIN)/python -m pytest -q tests/vm/test_many.py

examples: .venv/dev.done build/test-packages.done setup ## the examples that take minutes, in microVMs: SDKs, a browser and an encoder that sleep, a coding agent
	$(SUDO) env PERDURE_TEST_EXAMPLES=1 $(BIN)/python -m pytest -q tests/vm/test_sdks.py tests/vm/test_examples.py

docs: .venv/dev.done ## write the generated pages: docs/reference, state tables
	$(BIN)/python scripts/generate_docs.py

clean:    ## stop what runs, remove what the verbs made in this checkout
	-for home in $(PERDURE_HOME) build/*-home*; do test ! -x $(BIN)/fcrun -o ! -d "$$home" || { \
	    export PERDURE_HOME="$$(realpath "$$home")"; \
	    $(SUDO) $(BIN)/perdure down; $(SUDO) $(BIN)/fcrun host stop; }; done
	$(SUDO) rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
