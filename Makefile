# make demo       train a GatedDeltaNet encoder on real speech data and show the result
# make test       install and run the tests, about 15 minutes on two cores
# make test-basic a selection: names, configs, one test of every operation, the command line; about two minutes
# make test-slow  the tests that take minutes
# make lint       style, and the types of all code
# make test-matrix   the tests with every supported pair of Python and torch that this machine has
# make test-mutants  change one line at a time in a copy of the code: the tests must detect each change
# make native     build the compiled CPU kernels and install them into the virtual environment (docs/native.md)
# make native-wheels  their wheels for Linux, macOS and Windows, all from here, into dist/native
# make test-native    the tests of operations and layers with them, and random calls in an instrumented build
# make test-native-long  the same with 10,000 random calls of each kind
# make docs       the documents as a site, in site/; every link is checked
# make surface    write the list of public names, after a change to them
# make settings   write the reference of all settings, docs/settings.md, after a change to them
# make clean      remove the virtual environment and the files of runs and builds
#
# PYTHON=python3.11      which Python makes the virtual environment
# TORCH_INDEX=ADDRESS    an extra pip index for torch, e.g. the CPU one that pytorch.org shows
# ARGS="seed=1"          more arguments for the demo, or for pytest
# JOBS=2                 number of processes that run tests (0: only this one)

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= 2
# Tests of an optional package are left out where it is missing. Hydra's Optuna knows no Python from 3.12 on.
EXTRAS ?= app,test,parquet,text,tensorboard,sweep,slurm,docs$(shell $(PYTHON) -c \
	"import sys; print(',optuna' if sys.version_info < (3, 12) else '')")
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help demo test test-basic test-slow lint docs surface settings test-mutants test-matrix native native-wheels test-native test-native-long clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.app
	$(BIN)/python -m app encoder=gated_deltanet $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n $(JOBS) $(ARGS)

BASIC := tests/house tests/cfg tests/encoders/test_factory.py tests/app/test_cli.py tests/myfla/cache \
	tests/myfla/ops/test_family.py tests/myfla/test_fla_encoder_strategy_integration.py

test-basic: $(VENV)/.test
	$(BIN)/python -m pytest -q -x -n $(JOBS) $(ARGS) $(BASIC)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -q -n $(JOBS) -m slow $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The documents are in site/index.html"

test-matrix:
	LANES="py38 py38app lowest highest estimators" bash .ci/run

test-mutants: $(VENV)/.test
	$(BIN)/python tools/mutants.py $(ARGS)

surface: $(VENV)/.test
	$(BIN)/python tests/support/surface.py

settings: $(VENV)/.test
	$(BIN)/python tools/settings.py

native: $(VENV)/.app
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps ./libs/myfla_native
	$(BIN)/python -c "import myfla_native; print('myfla_native', myfla_native.__version__, myfla_native.level())"

native-wheels: $(VENV)/.test
	$(BIN)/python libs/myfla_native/wheels.py dist/native

test-native:
	LANES=native PYTHON=$(PYTHON) bash .ci/run

test-native-long:
	LANES=native FUZZ=10000 PYTHON=$(PYTHON) bash .ci/run

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing (torch is large: the first time takes minutes) ..."
	$(PIP_INSTALL) -e ".[app]"
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing (torch is large: the first time takes minutes) ..."
	$(PIP_INSTALL) -e ".[$(EXTRAS)]"
	@touch $@

$(VENV)/.lint: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) -e ".[app,lint]"
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) -e ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-* build dist site outputs multirun .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
