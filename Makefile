# Everything here works from any clone with Python 3.11+, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MINUTES ?= 10
KILLS ?= 20
comma := ,

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo up test sim sim-mutants sim-tail soak soak-tail amplification amplification-full locust check format protos bench bench-peers bench-replication profile clean lock

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kvshard needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.service: $(VENV)/.python requirements.lock pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.service requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

setup: $(VENV)/.service ## Install what the service needs into .venv

setup-dev: $(VENV)/.dev ## Install what tests and checks need too

demo: $(VENV)/.service ## Start a cluster, load real documents, search them, measure
	$(BIN)/kvshard demo

up: $(VENV)/.service ## Start a cluster on this machine in the foreground
	$(BIN)/kvshard up

test: $(VENV)/.dev ## Run all tests
	$(BIN)/python -m pytest

sim: $(VENV)/.dev ## Simulate replication under faults: SEEDS=5000, or SEED=17 for one again with its trace
	PYTHONPATH=tests:. $(BIN)/python -m sim $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),5000))

sim-mutants: $(VENV)/.dev ## Plant one bug at a time in the replication; print how many seeds each took to be caught
	PYTHONPATH=tests:. $(BIN)/python -m sim --mutants --seeds $(or $(SEEDS),1500)

sim-tail: $(VENV)/.dev ## Simulate hedging and the choice of replicas: SEEDS=200, SEED=17 for one, MUTANTS=1 for planted bugs
	PYTHONPATH=tests:. $(BIN)/python -m sim.tail $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),$(if $(MUTANTS),25,200)) $(if $(MUTANTS),--mutants))

soak: $(VENV)/.dev ## Random faults on real processes under load: MINUTES=10, SEED=7 for the same schedule again
	PYTHONPATH=tests:. $(BIN)/python -m soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

$(VENV)/.load: $(VENV)/.dev requirements-load.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-load.lock
	@touch $@

amplification: $(VENV)/.load ## Measure what hedging does for the tail: load-results/amplification.html, under 8 minutes
	$(BIN)/python -m loadtests amplification

amplification-full: $(VENV)/.load ## The same for every scenario, with the samples that a p99.9 takes: two hours
	$(BIN)/python -m loadtests amplification --full --target load-results/amplification-full

locust: $(VENV)/.load ## Load a running cluster from a web page: ROUTER=127.0.0.1:7700, SHAPE=ramp, steps or spike
	$(BIN)/locust -f loadtests/locustfile.py$(if $(SHAPE),$(comma)loadtests/shapes/$(SHAPE).py) --class-picker \
	  --web-host 127.0.0.1 --host $(or $(ROUTER),127.0.0.1:7700)

soak-tail: $(VENV)/.dev ## Slow leaves and impatient callers for long: budget, memory, work left: MINUTES=10, SEED=7
	PYTHONPATH=tests:. $(BIN)/python -m soak.tail --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

check: $(VENV)/.dev ## Format, lint, types, import rules, proto lint and drift
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/python -m pytest tests/repo

$(VENV)/.bench: $(VENV)/.dev requirements-bench.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.lock
	@touch $@

bench: $(VENV)/.bench bench-peers ## Measure kvshard beside its peers, 12 to 17 minutes: PARTS="fast-path ycsb" for some parts
	$(BIN)/python -m benchmarks $(PARTS)

bench-peers: $(VENV)/.bench ## Unpack redis, twemproxy and etcd from Debian's packages into .cache/peers, without root
	$(BIN)/python -m benchmarks.peers

profile: $(VENV)/.bench ## Flame graphs of client, router and leaf: LOAD=gets, lone, batches, puts or unary; DIRECT=1
	$(BIN)/python -m benchmarks.profiling $(LOAD) $(if $(DIRECT),--direct)

bench-replication: $(VENV)/.dev ## Measure failover, replicas and catching up: KILLS=200, PART=kills for one part
	$(BIN)/python -m benchmarks.replication --kills $(KILLS) $(PART)

format: $(VENV)/.dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(VENV)/.dev ## Generate kvshard/v1 anew from protos/
	$(BIN)/python scripts/generate_protos.py

lock: ## Write the lock files anew from pyproject.toml (with the newest releases that its ranges admit)
	PYTHON=$(PYTHON) sh scripts/lock.sh

clean: ## Remove what was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis bench-results load-results
