# The single door: every habit is a target. `make` prints help.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config/config.yaml
FUZZ_EXAMPLES ?= 2000
FUZZ_SEED ?= 1
FUZZ_SERVED ?= 100000
SOAK_ROUNDS ?= 50
TEST_PROCESSES ?= auto
CLIENTS ?=

.PHONY: help setup setup-dev demo run simulator test test-clients soak fuzz check lint format types cover bench bench-peers docs clean

help: ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed (found: $$($(PYTHON) --version 2>&1)); set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "==> making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.python requirements.txt
	@echo "==> installing the runtime pins"
	@$(BIN)/pip install --disable-pip-version-check --progress-bar on -r requirements.txt | sed -u 's/^/    /'; exit $${PIPESTATUS[0]}
	@touch $@

$(VENV)/.dev: $(VENV)/.python requirements.txt requirements-dev.txt
	@echo "==> installing the development pins"
	@$(BIN)/pip install --disable-pip-version-check --progress-bar on -r requirements-dev.txt | sed -u 's/^/    /'; exit $${PIPESTATUS[0]}
	@touch $@ $(VENV)/.runtime

setup: $(VENV)/.runtime ## make .venv and install the runtime pins
setup-dev: $(VENV)/.dev ## the same with the development pins

demo: $(VENV)/.runtime ## simulator and gateway together, two requests, stays up until Ctrl-C
	@$(BIN)/python -m aisix.simulator.demo $(DEMO_ARGS)

run: $(VENV)/.runtime ## the gateway alone, with $(CONFIG)
	@exec $(BIN)/python server.py --config $(CONFIG)

simulator: $(VENV)/.runtime ## the Azure simulator alone
	@exec $(BIN)/python -m aisix.simulator

test: $(VENV)/.dev ## the whole test suite, on every CPU (TEST_PROCESSES=0: in one process)
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES)

test-clients: $(VENV)/.dev ## real clients, each in its own environment; writes docs/clients.md (CLIENTS="…": some)
	$(BIN)/python -m tests.clients.environments $(CLIENTS)
	AISIX_TEST_CLIENTS="$(CLIENTS)" $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) -m clients tests/clients
	$(if $(CLIENTS),,$(BIN)/python -m pytest -q tests/e2e -k "sdk or js")
	$(if $(CLIENTS),,$(BIN)/python -m tests.clients.report)

soak: $(VENV)/.dev ## 50 start/stop cycles, repeated e2e journeys (long)
	AISIX_TEST_SOAK_ROUNDS=$(SOAK_ROUNDS) $(BIN)/python -m pytest -q -m soak --timeout 1800

fuzz: $(VENV)/.dev ## property tests with many examples, 100,000 spoilt requests for parser and server (long)
	AISIX_TEST_EXAMPLES=$(FUZZ_EXAMPLES) AISIX_TEST_SEED=$(FUZZ_SEED) AISIX_TEST_SERVED=$(FUZZ_SERVED) \
		$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) tests/property --timeout 3600

lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy
	$(BIN)/mypy --config-file pyproject.toml tests bench

check: lint types test ## everything that CI requires

cover: $(VENV)/.dev ## branch coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

$(VENV)/.bench: $(VENV)/.dev bench/requirements.txt
	@echo "==> installing what draws the plots"
	@$(BIN)/pip install --disable-pip-version-check -q -r bench/requirements.txt
	@touch $@

bench: $(VENV)/.bench ## against direct, nginx and a stock Tornado proxy; BENCH_ONLY=all: everything
	$(BIN)/python -m bench.run

bench-peers: $(VENV)/.bench ## the same with LiteLLM, Portkey, TensorZero and Envoy (installs them)
	$(BIN)/python -m bench.peers
	BENCH_PEERS=$${BENCH_PEERS:-all} $(BIN)/python -m bench.run

docs: $(VENV)/.dev ## rewrite the generated tables of docs/ and config.reference.yaml
	$(BIN)/python -m tests.support.config_reference

clean: ## remove what the targets made, the store in data/ excepted
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/bin bench/.peers build/clients htmlcov .coverage*
