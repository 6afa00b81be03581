# Type `make` for the list of targets.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
TEST_JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -q -n $(TEST_JOBS) --dist loadfile
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint types format test-slow test-slurm test-all bench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv with fedhpc and the developer tools

$(STAMP): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
# DeepSpeed's build asks the installed torch what it is for, so torch is there first. Nothing of it is compiled.
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation 'deepspeed>=0.19'
	touch $@

quickstart: $(STAMP)  ## FedAvg and FedDRA on generated data with two ranks, compared; results in runs/quickstart
	$(BIN)/fedhpc run configs/quickstart.yaml --ranks 2 --run-dir runs/quickstart/fedavg --fresh
	$(BIN)/fedhpc run configs/quickstart_feddra.yaml --ranks 2 --run-dir runs/quickstart/feddra --fresh
	$(BIN)/fedhpc report runs/quickstart/fedavg runs/quickstart/feddra

test: lint types  ## Lint, types and all tests that take seconds
	$(PYTEST) -m 'not slow and not slurm'

lint: $(STAMP)  ## Style and architecture by ruff
	$(BIN)/ruff check .

types: $(STAMP)  ## Types by mypy
	$(BIN)/mypy

format: $(STAMP)  ## Format and mend what ruff can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

test-slow: $(STAMP)  ## The tests that take minutes
	$(PYTEST) -m 'slow and not slurm'

test-slurm: $(STAMP)  ## Jobs on a real Slurm of two nodes, made for it on this machine (as root on Debian)
	slurm/local_cluster.sh run env $(PYTEST) -m slurm tests/e2e/slurm || [ $$? -eq 77 ]

test-all: $(STAMP)  ## Every test, but for those on Slurm
	$(PYTEST) -m 'not slurm'

bench: $(STAMP)  ## The round-throughput benchmark; see benchmarks/
	$(BIN)/python benchmarks/rounds/fedhpc_run.py --model cnn --ranks 2 --rounds 8

clean:  ## Remove caches and build products; keeps .venv, data and runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
