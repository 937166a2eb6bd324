# make help. Everything is set up on the way: Python 3.11 or newer, git and make are all that is needed.
#
#   make serve ARGS="--enable-chaos"          flags for `fdmoe serve`
#   make test ARGS="tests/ops -k settings"    arguments for pytest
#   make serve PYTHON=python3.12              another interpreter for the virtual environment
#   make test-gpu VENV= PYTHON=python3        no virtual environment: the packages this interpreter has already

SHELL := bash
PYTHON ?= python3
VENV ?= .venv
WATCHDOG_VENV ?= .venv-watchdog
ARGS ?=
RUNBOOKS ?= dashboards/runbooks

DISTRIBUTIONS := watchdog kernels fdmoe_ops
# whole trees of processes and real alerts have deadlines, and would take the processors from one another; the others may
# run beside each other
ALONE := tests/dashboards/test_live.py tests/dashboards/test_runbooks.py tests/tree/
BESIDE := $(filter-out tests/dashboards/ tests/tree/ tests/watchdog/ tests/support/,$(sort $(wildcard tests/*/))) \
  $(filter-out $(ALONE),$(wildcard tests/dashboards/test_*.py))
SEVERAL := --numprocesses auto --maxprocesses 8
REQUIREMENTS := constraints.txt requirements-dev.txt $(DISTRIBUTIONS:%=%/pyproject.toml)

ifeq ($(strip $(VENV)),)
READY :=
# absolute, because commands may change directory
export PYTHONPATH := $(CURDIR)/watchdog:$(CURDIR)/kernels:$(CURDIR)/fdmoe_ops
RUN := $(PYTHON)
else
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python
endif
# -P: `python -m` would put the repository's root on sys.path, where kernels/ and watchdog/ shadow packages
MODULE := $(RUN) -P -m

.DEFAULT_GOAL := help
.PHONY: help serve test test-gpu test-watchdog lint format dashboards screenshots

help:  ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 16
	@sed -nE 's/^#   //p' $(firstword $(MAKEFILE_LIST))

serve: $(READY)  ## serve the demo layers on 127.0.0.1:8080, the watchdog on :9400; Ctrl-C ends it
	$(MODULE) fdmoe_ops.cli serve $(ARGS)

test: $(READY) test-watchdog  ## all tests that need no GPU; the watchdog's where torch does not exist
ifeq ($(strip $(ARGS)),)
	$(MODULE) pytest $(SEVERAL) $(BESIDE)
	$(MODULE) pytest $(ALONE) tests/watchdog/status_page/test_browser.py
else
	$(MODULE) pytest $(ARGS)
endif

test-gpu: $(READY)  ## the tests that need a CUDA GPU
	$(MODULE) pytest -m gpu tests/kernels tests/ops tests/tree $(ARGS)

test-watchdog: $(WATCHDOG_VENV)/.ready
	@if $(WATCHDOG_VENV)/bin/python -c 'import torch' 2>/dev/null; then \
	  echo 'error: $(WATCHDOG_VENV) has torch; the watchdog must do without' >&2; exit 1; fi
	$(WATCHDOG_VENV)/bin/python -P -m pytest $(SEVERAL) tests/watchdog

lint: $(READY)  ## ruff, mypy --strict, import-linter
	$(MODULE) ruff check .
	$(MODULE) ruff format --check .
	$(MODULE) mypy
	$(RUN) -P -c 'import sys; from importlinter.cli import lint_imports_command as lint; sys.exit(lint())'

format: $(READY)  ## write what ruff would
	$(MODULE) ruff check --fix .
	$(MODULE) ruff format .

dashboards: $(READY)  ## write dashboards, rules and tables anew; RUNBOOKS= is where runbooks are read
	$(RUN) dashboards/generate.py --runbooks $(RUNBOOKS)
	$(RUN) -P dashboards/metrics_page.py > dashboards/metrics.md

screenshots: $(READY)  ## take the pictures of the status page anew, from a real tree during a stall; needs Chromium
	$(RUN) -P dashboards/screenshots.py

define new_environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo 'error: $(PYTHON) is not Python 3.11 or newer; name one with PYTHON=' >&2; exit 1; }
$(PYTHON) -m venv $(@D)
endef

ifneq ($(READY),)
$(READY): $(REQUIREMENTS)
	$(new_environment)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt \
	  $(DISTRIBUTIONS:%=-e ./%)
	@touch $@
endif

$(WATCHDOG_VENV)/.ready: constraints.txt watchdog/pyproject.toml Makefile
	$(new_environment)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ./watchdog \
	  pytest pytest-timeout pytest-xdist hypothesis
	@touch $@
