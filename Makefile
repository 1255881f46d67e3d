# Two commands: `make demo` and `make test`. Both set up .venv first; a second call finds its stamp and starts at once.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
# uv does not read pip's settings for local wheels, so it is handed them. Python compiles what is imported; of all files that takes 20 s.
INSTALL := $(if $(UV),$(UV) pip install --python $(BIN)/python $(addprefix --find-links ,$(PIP_FIND_LINKS)),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile) --constraint constraints.txt
PINS := $(shell cat pyproject.toml constraints.txt 2>/dev/null | cat - <($(PYTHON) --version) | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.installed-$(PINS)
STAMP_DEV := $(VENV)/.installed-dev-$(PINS)
.DEFAULT_GOAL := help
.PHONY: help demo laptop test test-slow test-hf4 test-frameworks check docs release paper paper-long clean

help: ## say what can be made
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "loopscale needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once)"
	@$(INSTALL) --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

$(STAMP_DEV): $(STAMP)
	@echo "installing what the tests need into $(VENV) (once)"
	@$(INSTALL) --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## the study on real text, minutes: prints the verdict and the page's path
	@$(BIN)/loopscale transfer --preset demo

laptop: $(STAMP) ## the same with 3 seeds and loops to 16, at most 40 minutes
	@$(BIN)/loopscale transfer --preset laptop

test: $(STAMP_DEV) ## the quick suite
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP_DEV) ## the long studies and soaks too
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'slow or not slow'

test-hf4: ## the Hugging Face bridge on transformers 4.57, in a place of its own
	@test -x .venv-hf4/bin/python || $(PYTHON) -m venv .venv-hf4
	@.venv-hf4/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[hf,track,eval]' 'transformers>=4.57,<5' pytest pytest-xdist hypothesis
	@OMP_NUM_THREADS=1 .venv-hf4/bin/python -m pytest -n 2 tests/integrations tests/trackers

test-frameworks: ## the scripts of "In your framework", JAX examples too, in a place of their own
	@test -x .venv-frameworks/bin/python || $(PYTHON) -m venv .venv-frameworks
	@.venv-frameworks/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[hf,jax,examples,sweep]' 'pytorch-lightning==2.6.6' 'torchtitan==0.2.2' triton pytest pytest-xdist hypothesis
	@OMP_NUM_THREADS=1 .venv-frameworks/bin/python -m pytest -n 2 -m 'slow or not slow' tests/docs/test_docs_frameworks.py tests/optax

docs: $(STAMP_DEV) ## the documentation's site, strict: build/docs/index.html
	@$(INSTALL) --editable '.[dev,docs]'
	@OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

release: $(STAMP_DEV) ## sdist and wheel in build/dist, checked; TAG=vX.Y.Z must be the version's
	@test -z "$(TAG)" || test "$(TAG)" = "v$$($(BIN)/python -c 'import loopscale; print(loopscale.__version__)')" || { echo "the tag $(TAG) is not the version of pyproject.toml"; exit 2; }
	@$(INSTALL) --editable '.[dev,release]'
	@rm -rf build/dist && $(BIN)/python -m build --outdir build/dist . >/dev/null && $(BIN)/python -m twine check --strict build/dist/*
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -m slow tests/docs/test_docs_release.py

paper: $(STAMP_DEV) ## the paper's studies that have no record yet; all of them with AGAIN=1
	@OMP_NUM_THREADS=1 $(BIN)/python papers/residual_scaling $(if $(AGAIN),--again)

paper-long: $(STAMP_DEV) ## its long comparisons: all rules, both exponents over layers, loops against distinct layers
	@OMP_NUM_THREADS=1 $(BIN)/python papers/residual_scaling rules layers untied $(if $(AGAIN),--again)

check: $(STAMP_DEV) ## lint and strict types
	@$(BIN)/ruff check . && $(BIN)/mypy

clean: ## remove what was installed and run
	rm -rf $(VENV) .venv-hf4 .venv-frameworks build runs
