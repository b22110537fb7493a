# The only commands a newcomer needs. `make` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
# uv installs in seconds; pip is the way back where uv cannot be had. Compiled once here, imports are quick ever after,
# also where Python is told to write no bytecode.
INSTALL = $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python

.PHONY: help setup demo bench docs docs-serve dist test only-tests test-slow test-oldest lint format clean

help:
	@echo "make setup        a virtual environment in $(VENV) with everything"
	@echo "make demo         fine-tunes a small DETR on generated scenes, prints AP before and after"
	@echo "make test         lint and tests"
	@echo "make bench        side by side with stock transformers: benchmarks/results, docs/performance.md"
	@echo "make docs         the site, in build/site: open index.html; chapters and notebooks run, links are checked"
	@echo "make docs-serve   the site at http://127.0.0.1:8000, built again when a page changes"
	@echo "make dist         wheel and sdist in dist/, each tried in an empty environment"
	@echo "make test-slow    the tests that take minutes"
	@echo "make test-oldest  the tests against the oldest supported transformers and torch"
	@echo "make format       ruff, in place"

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv && $(INSTALL) -e ".[test]" $(EXTRA) || $(BIN)/python -m pip install -q -e ".[test]" $(EXTRA)
	@touch $(STAMP)

demo: setup
	$(BIN)/hf-detr demo --output runs/demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg --no-cache

# Two processes of one thread each: half of the time is the start of commands that are tested from outside.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Some 20 minutes. ORIGINAL=DIR, a checkout of facebookresearch/detr, is measured as well.
bench: setup
	$(INSTALL) -e ".[test,bench]"
	$(BIN)/python benchmarks/run.py $(if $(ORIGINAL),--original $(ORIGINAL))
	$(BIN)/python benchmarks/report.py

MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

# The notebooks run while the site is built: each is one process, and most machines have two cores.
docs: setup
	$(INSTALL) -e ".[test,docs]"
	$(BIN)/python docs/site_tools/run_notebooks.py & notebooks=$$!; \
	$(MKDOCS) build; built=$$?; wait $$notebooks && exit $$built

docs-serve: setup
	$(INSTALL) -e ".[test,docs]"
	$(MKDOCS) serve

dist: setup
	rm -rf dist
	$(BIN)/python -m build --installer uv
	$(BIN)/python tests/check_dist.py dist

test: lint
	$(PYTEST)

test-slow: setup
	$(INSTALL) -e ".[test,docs,browser]"
	$(BIN)/python -m pytest -m slow

test-oldest:
	$(MAKE) setup VENV=.venv-oldest EXTRA='"transformers==5.17.0" "torch==2.11.*"'
	$(MAKE) only-tests VENV=.venv-oldest

only-tests:
	$(PYTEST)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-oldest runs build dist src/*.egg-info
