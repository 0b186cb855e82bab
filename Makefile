# Everything a developer types. `make` alone lists it.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
ADAPTERS := $(wildcard adapters/*/pyproject.toml kernels/*/pyproject.toml)
PIP_WHEEL := $(subst install,wheel,$(PIP)) --no-deps --no-build-isolation
KERNELS := $(wildcard kernels/*/src/*)
PORT ?= 8080
ARGS ?=
PT_HPU_LAZY_MODE ?= 1
DEVICE ?= hpu
IMAGE ?= $(if $(filter hpu,$(DEVICE)),tgi-gaudi,tgi-$(DEVICE))
BUILD_ARGS ?=
GAUDI_IMAGE ?= vault.habana.ai/gaudi-docker/1.24.1/ubuntu24.04/habanalabs/pytorch-installer-2.11.0:latest
VOLUME ?= $(CURDIR)/data
MODELS := .venv/bin/python -m pytest --durations=0 -s -vv -o faulthandler_timeout=900 integration-tests/models
LIMIT ?= 120
WORKERS ?= 2
HOURS ?= 1
TESTS ?= tests/test_generation.py tests/test_constrained.py $(wildcard integration-tests/test_*.py)

.PHONY: help setup clients agents test-agents docs wheels release run test test-slow fuzz chaos soak test-hpu-sim test-gpu check fix bench size clean image \
  run-local-dev-container local-dev-install run-integration-tests run-integration-tests-with-all-models \
  capture-expected-outputs-for-integration-tests

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 48

setup: .venv/.dev  ## make .venv with the server, every adapter and the developers' tools

clients: .venv/.clients  ## make .venv/clients with the libraries that integration-tests/clients tries

agents: .venv/.agents  ## make .venv/agents with the frameworks that integration-tests/agents tries

test-agents: .venv/.dev .venv/.agents  ## try frameworks for agents and structured output
	.venv/bin/python -m pytest -q integration-tests/agents $(ARGS)

docs: .venv/.docs  ## build the site of the documentation in build/site; every link is checked
	rm -rf build/docs build/site && mkdir -p build/docs
	git ls-files -z '*.md' '*.png' 'adapters/*/tests/*.py' | xargs -0 cp --parents --target-directory=build/docs
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict

run: .venv/.run  ## serve the demo model on port 8080; PORT=…, ARGS="--model-id …"
	.venv/bin/tgi serve --port $(PORT) $(ARGS)

# Files run side by side, each in one process, with a thread of the CPU.
test: .venv/.dev .venv/.clients  ## run the tests; ARGS="tests/test_cli.py -k help", WORKERS=0 for one process
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n $(WORKERS) --dist loadfile -m 'not slow' $(ARGS)

test-slow: .venv/.dev .venv/.clients  ## run the tests that `make test` leaves out
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n $(WORKERS) --dist loadfile -m slow \
	  -o faulthandler_timeout=600 $(ARGS)

# A file at a time, in any order: what the time is too short for differs from run to run.
fuzz: .venv/.dev  ## try random examples for LIMIT=120 seconds; SEED=… tries those of an earlier run
	@seed=$(or $(SEED),$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')); end=$$(($$(date +%s) + $(LIMIT))); \
	while echo "seed $$seed"; do \
	  for file in $$(grep -rlE '@given|StateMachine' --include='test_*.py' tests adapters kernels | shuf); do \
	    left=$$((end - $$(date +%s))); [ $$left -gt 0 ] || exit 0; \
	    timeout $$left .venv/bin/python -m pytest -q -m hypothesis -o faulthandler_timeout=600 \
	      --hypothesis-profile=fuzz --hypothesis-seed=$$seed $$file $(ARGS); code=$$?; \
	    case $$code in 0|5|124) ;; *) echo "again: make fuzz SEED=$$seed"; exit $$code;; esac; \
	  done; \
	  seed=$$((seed + 1)); \
	done

test-hpu-sim: .venv/.dev  ## run what has a model on a simulated Gaudi; PT_HPU_LAZY_MODE=0 TESTS="tests/test_generation.py"
	TGI_TEST_DEVICE=hpu-sim PT_HPU_LAZY_MODE=$(PT_HPU_LAZY_MODE) .venv/bin/python -m pytest -q \
	  -o faulthandler_timeout=900 $(TESTS) $(ARGS)

test-gpu: .venv/.dev  ## on a machine with an NVIDIA GPU: every family, generations and random workloads on it
	.venv/bin/python -m pytest -q -n $(WORKERS) tests/device/test_gpu.py
	TGI_TEST_DEVICE=cuda .venv/bin/python -m pytest -q -n $(WORKERS) tests/test_generation.py tests/test_constrained.py
	.venv/bin/python benchmarks/gpu.py equality

chaos: .venv/.dev  ## disturb a server for ten minutes, and check that nothing is lost; ARGS="--seed 3 -- --num-shard 2"
	.venv/bin/python integration-tests/chaos/chaos.py --rounds 100000 --minutes 10 $(ARGS)

soak: .venv/.dev  ## serve a mixed load for HOURS=1, and check that nothing leaks; a picture in build/soak.png
	mkdir -p build && .venv/bin/python integration-tests/chaos/soak.py --hours $(HOURS) --plot build/soak.png $(ARGS)

test-transformers-4: .venv/.dev  ## run what needs transformers with the version that optimum-habana pins
	$(PIP) --no-deps --upgrade --target .venv/transformers-4 \
	  'transformers>=4.55,<4.56' 'tokenizers>=0.21,<0.22' 'huggingface-hub>=0.34,<1'
	PYTHONPATH=.venv/transformers-4 .venv/bin/python -m pytest -q adapters/tgi-transformers $(ARGS)

check: .venv/.dev  ## lint, formatting, types, import rules
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/hadolint Dockerfile

fix: .venv/.dev  ## format, and mend what the linter can
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

bench: .venv/.dev  ## measure the server without a model; more in benchmarks/README.md
	.venv/bin/python benchmarks/http_stream.py $(ARGS)

size:  ## lines of Python by package, and files that have grown too long; BASE=REVISION: beside another revision's
	@count() { (cd "$$1" && for part in tgi/* adapters/*/tgi_*/ kernels/*/tgi_*/; do \
	  lines=$$(find $$part -name '*.py' -exec cat {} + 2>/dev/null | wc -l); \
	  case $$part in *.py) part=tgi/*.py;; esac; echo "$$lines $${part%/}"; done) | \
	  awk '$$1 {sum[$$2] += $$1} END {for (part in sum) print part, sum[part]}' | sort; }; \
	now=$$(mktemp) && count . > $$now; \
	if [ -n "$(BASE)" ]; then \
	  old=$$(mktemp -d) && git archive $(BASE) | tar -x -C $$old && count $$old | join -a 1 -a 2 -e 0 -o 0,1.2,2.2 - $$now | \
	    awk '{print; a += $$2; b += $$3} END {print "all", a, b}' | column -t -N package,$(BASE),now -R 2,3; rm -r $$old; \
	else awk '{print; sum += $$2} END {print "all", sum}' $$now | column -t -R 2; fi; rm $$now
	@find tgi adapters kernels -name '*.py' -exec wc -l {} + | awk '$$1 > 400 && $$2 != "total" {print "over 400 lines:", $$2, $$1}'

# The next six are those of TGI's Gaudi backend.

image:  ## build the image tgi-gaudi; DEVICE=cpu or cuda for tgi-cpu and tgi-cuda, BUILD_ARGS="--target sagemaker"
	docker build --build-arg DEVICE=$(DEVICE) --tag $(IMAGE) $(BUILD_ARGS) .

run-local-dev-container:  ## a shell in Habana's image with this folder in it; there, make local-dev-install
	docker run --rm --interactive --tty --runtime=habana --ipc=host --cap-add=sys_nice --net=host \
	  --env HABANA_VISIBLE_DEVICES=all --env OMPI_MCA_btl_vader_single_copy_mechanism=none --env HF_TOKEN \
	  --env HF_HOME=/data --volume $(VOLUME):/data --volume $(CURDIR):/tgi --workdir /tgi $(GAUDI_IMAGE) bash

local-dev-install:  ## in that container: install the server beside the torch that is there; elsewhere: setup
	@if $(PYTHON) -c 'import habana_frameworks' 2> /dev/null; then \
	  $(PYTHON) docker/requirements.py pyproject.toml hpu > /tmp/requirements.txt && \
	  $(PYTHON) -m venv --system-site-packages .venv && \
	  $(PIP) --requirement /tmp/requirements.txt --requirement requirements-dev.txt && \
	  $(PIP) --no-deps --editable . $(patsubst %/pyproject.toml,--editable %,$(ADAPTERS)) && \
	  touch .venv/.run .venv/.dev; \
	else $(MAKE) setup; fi

run-integration-tests: .venv/.dev  ## serve small models on a CPU and a simulated Gaudi; DOCKER_IMAGE=tgi-gaudi: TGI's two
	$(MODELS) $(if $(DOCKER_IMAGE),--gaudi) $(ARGS)

run-integration-tests-with-all-models: .venv/.dev  ## all that TGI tests on Gaudi; DOCKER_IMAGE=tgi-gaudi: in containers
	$(MODELS) --gaudi --gaudi-all-models $(ARGS)

capture-expected-outputs-for-integration-tests: .venv/.dev  ## keep what they answer now; ARGS=--gaudi-all-models
	$(MODELS) --capture-expected-outputs $(ARGS)

wheels: .venv/.dev  ## build wheels of every distribution in build/dist, and try them in an empty environment
	rm -rf build/dist build/lib build/bdist.* $(addsuffix build,$(dir $(ADAPTERS)))
	$(PIP_WHEEL) --wheel-dir build/dist . $(dir $(ADAPTERS))
	.venv/bin/python release/try_wheels.py build/dist

release: .venv/.dev  ## write VERSION=0.2.0 and its section of the changelog, build and try; CONTRIBUTING.md
	@git diff --quiet HEAD || { echo "commit first: a release is of what is committed"; exit 1; }
	.venv/bin/python release/version.py $(VERSION)
	$(MAKE) .venv/.dev
	TGI_KERNELS=all $(MAKE) wheels
	@git diff --stat

clean:  ## remove what the other targets made
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("tgi needs Python 3.11 or newer; name one: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# torch comes first and pinned: nothing after it may bring another one.
.venv/.run: pyproject.toml $(ADAPTERS) $(KERNELS) | .venv/bin/python
	$(PIP) '$(TORCH)' 'setuptools>=77'
	$(PIP) --no-build-isolation '$(TORCH)' --editable '.[docs,otlp-grpc,ray,transformers]' $(patsubst %/pyproject.toml,--editable %,$(ADAPTERS))
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.run
	$(PIP) --requirement requirements-dev.txt
	@touch $@

.venv/.clients: integration-tests/clients/requirements.txt | .venv/bin/python
	.venv/bin/python -m venv --clear .venv/clients
	.venv/clients/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' --requirement $<
	@touch $@

.venv/.agents: integration-tests/agents/requirements.txt | .venv/bin/python
	.venv/bin/python -m venv --clear .venv/agents
	.venv/agents/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

.venv/.docs: docs/requirements.txt | .venv/bin/python
	.venv/bin/python -m venv --clear .venv/docs
	.venv/docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
