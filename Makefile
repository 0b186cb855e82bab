# Everything a developer types. `make` alone lists it.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
ADAPTERS := $(wildcard adapters/*/pyproject.toml)
PORT ?= 8080
ARGS ?=
PT_HPU_LAZY_MODE ?= 1
TESTS ?= tests/test_generation.py tests/test_constrained.py $(wildcard integration-tests/test_*.py)

.PHONY: help setup clients run test test-hpu-sim check fix bench size local-dev-install clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

setup: .venv/.dev  ## make .venv with the server, every adapter and the developers' tools

clients: .venv/.clients  ## make .venv/clients with the libraries that integration-tests/clients tries

run: .venv/.run  ## serve the demo model on port 8080; PORT=…, ARGS="--model-id …"
	.venv/bin/tgi serve --port $(PORT) $(ARGS)

test: .venv/.dev .venv/.clients  ## run all tests; ARGS="tests/test_cli.py -k help"
	.venv/bin/python -m pytest -q $(ARGS)

test-hpu-sim: .venv/.dev  ## run what has a model on a simulated Gaudi; PT_HPU_LAZY_MODE=0 TESTS="tests/test_generation.py"
	TGI_TEST_DEVICE=hpu-sim PT_HPU_LAZY_MODE=$(PT_HPU_LAZY_MODE) .venv/bin/python -m pytest -q \
	  -o faulthandler_timeout=900 $(TESTS) $(ARGS)

check: .venv/.dev  ## lint, formatting, types, import rules
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

fix: .venv/.dev  ## format, and mend what the linter can
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

bench: .venv/.dev  ## measure the server without a model; more in benchmarks/README.md
	.venv/bin/python benchmarks/http_stream.py $(ARGS)

size:  ## lines of code by package, and the files that have grown too long
	@for part in tgi/* adapters/*/tgi_*/; do \
	  echo "$$(find $$part -name '*.py' -exec cat {} + | wc -l)	$$part"; done | sort -rn | grep -v '^0'
	@find tgi adapters -name '*.py' -exec wc -l {} + | awk '$$1 > 400 && $$2 != "total" {print "over 400 lines:", $$2, $$1}'

local-dev-install: setup  ## another name of setup

clean:  ## remove what the other targets made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("tgi needs Python 3.11 or newer; name one: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# torch comes first and pinned: nothing after it may bring another one.
.venv/.run: pyproject.toml $(ADAPTERS) | .venv/bin/python
	$(PIP) '$(TORCH)'
	$(PIP) '$(TORCH)' --editable . $(patsubst %/pyproject.toml,--editable %,$(ADAPTERS))
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.run
	$(PIP) --requirement requirements-dev.txt
	@touch $@

.venv/.clients: integration-tests/clients/requirements.txt | .venv/bin/python
	.venv/bin/python -m venv --clear .venv/clients
	.venv/clients/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' --requirement $<
	@touch $@
