# make setup      virtual environment in .venv with the tested versions (constraints.txt)
# make test       everything that runs in minutes on a CPU
# make test-slow  the long tests
# make test-gpu   the tests that need an NVIDIA GPU
# make lint       ruff and mypy
# make demo       build the demo bundle, ask it about pictures, check it against PyTorch
# make demo-table accuracy of the demo model at every ratio and method (minutes)
# make readme     fill the README's generated parts from the commands and the results
# make bench      time to first token on a checkpoint of LLaVA-OneVision-0.5B's shapes
# make clean      remove what the other targets made, the environment included

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-gpu lint demo demo-table bench readme clean

BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
PIP := $(BIN)/pip -qq --disable-pip-version-check

help:
	@sed -n 's/^# //p' Makefile

setup: $(STAMP)

# torch comes first and alone: of this one version a CPU build may lie at hand (PIP_FIND_LINKS or an
# index of such builds), and nothing that follows may make pip look for another.
$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV)"
	@$(BASE_PYTHON) -m venv $(VENV)
	@$(PIP) install "torch==2.13.0"
	@$(PIP) install -c constraints.txt -e ".[export,rtx,dev]"
	@touch $@

test: $(STAMP)
	@$(BIN)/python -m pytest

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -m slow

test-gpu: $(STAMP)
	@$(BIN)/python -m pytest -m gpu -rs

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

demo: $(STAMP)
	@$(BIN)/python -m lvlm_export.demo.show

demo-table: $(STAMP)
	@$(BIN)/python -m lvlm_export.demo.table

bench: $(STAMP)
	@$(BIN)/python tests/benchmarks/first_token.py

readme: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python tests/update_readme.py

clean:
	rm -rf $(VENV) bundles .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
