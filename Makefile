# Every target sets up what it needs in .venv. Variables: PYTHON, PIP_ARGS (for pip install).
PYTHON ?= python3
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint format bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed: choose one with make PYTHON=/path/to/python3"; \
	  exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments:" \
	       "install its venv package (Debian and Ubuntu: apt install python3-venv)"; \
	  exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
	  -c constraints.txt -e '.[all,dev]'
	@touch $@

setup: $(STAMP) ## Install the package and all tools into .venv

demo: $(STAMP) ## Export, detect, compare and report on the small trained detectors
	$(BIN)/carafe-deploy demo --out out/demo

test: lint ## Linters, type checker, then all tests
	$(BIN)/python -m pytest

lint: $(STAMP) ## Linters and type checker
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP) ## Format and fix the Python code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP) ## Measure again what benchmarks/results/ and README report (about 15 minutes)
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/paste_masks.py
	$(BIN)/python benchmarks/function_bodies.py
	$(BIN)/python benchmarks/detector_cpu.py
	$(BIN)/python benchmarks/readme_figures.py

clean: ## Remove everything that was made here, .venv included
	rm -rf $(VENV) build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find carafe_deploy tests -name __pycache__ -type d -prune -exec rm -rf {} +
