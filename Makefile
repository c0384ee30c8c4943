# Each target sets up everything it needs: an own virtual environment in .venv, packages from PyPI, Debian packages when run as root.
.PHONY: demo test lint types check bench leftovers bench-micro setup clean schema constraints soak
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/.runtime          ## set up and show the whole story, offline, on loopback
	@$(BIN)/sbxproxy demo

test: .venv/.dev              ## set up and run every check: lint, types, import contracts, tests with real programs
	@tools/check

setup: .venv/.dev

lint: .venv/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

types: .venv/.dev
	$(BIN)/mypy

bench: .venv/.dev             ## sbxproxy beside other proxies in one run; three quarters of an hour (BENCH=--quick: two minutes)
	$(BIN)/python -m benchmarks setup
	$(BIN)/python -m benchmarks all $(BENCH)

bench-micro: .venv/.dev       ## the parts of a connection, one by one; five seconds
	$(BIN)/python -m benchmarks micro

soak: .venv/.dev             ## ten minutes of everything at once, with policies that change; fails if something grows or gets through
	$(BIN)/python -m benchmarks soak $(SOAK)

leftovers: .venv/.dev         ## run 1,000 sandboxes, one after another and at once, and say what they leave behind; takes minutes
	@PYTHONPATH=tests $(BIN)/python -m support.leftovers --everything

schema: .venv/.dev            ## write docs/policy.schema.json again
	$(BIN)/sbxproxy schema > docs/policy.schema.json

constraints: .venv/.dev       ## pin what is installed now
	$(BIN)/pip freeze --exclude-editable | LC_ALL=C sort -f > constraints.txt

.venv/.runtime: pyproject.toml constraints.txt tools/setup
	@PYTHON="$(PYTHON)" tools/setup runtime

.venv/.dev: pyproject.toml constraints.txt tools/setup
	@PYTHON="$(PYTHON)" tools/setup dev

clean:
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis .coverage* htmlcov node_modules
