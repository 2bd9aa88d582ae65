# `make demo` on a fresh machine sets everything up and runs the whole pipeline; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# What the demonstration changes of the full experiment: small enough for a laptop, without network or GPU.
DEMO := data.source=digits augment.flip=false train.batch_size=64 \
        cnn.epochs=10 resnet.epochs=10 resnet.base_channels=16

.PHONY: help demo repro seeds test test-slow lint repository
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: repository $(VENV)/installed ## the whole pipeline on scikit-learn's digits, in minutes
	@git config user.name >/dev/null && git config user.email >/dev/null || { \
	    git config user.name demo; git config user.email demo@localhost; \
	    echo 'git had no user name, without which DVC keeps no experiment: it is "demo" in this clone now.'; }
	@if dvc exp list --name-only | grep -qx demo; then dvc exp remove --quiet demo; fi
	dvc exp run --name demo $(DEMO:%=--set-param %)
	@echo
	@echo 'The report is report/index.html. This is an ordinary DVC workspace now; go on with, for example,'
	@echo '    source $(VENV)/bin/activate'
	@echo '    dvc exp run -S train.weight_decay=1e-4'
	@echo '    dvc metrics diff demo'
	@echo '    dvc plots show'
	@echo 'params.yaml holds the parameters of the demonstration; the full experiment on CIFAR-10 is'
	@echo '    git restore params.yaml && make repro'

repro: repository $(VENV)/installed ## the experiment as params.yaml has it, as far as it is not up to date
	dvc repro

# N experiments that differ in the seed alone, the first with that of params.yaml; JOBS of them at a time.
N ?= 5
JOBS ?= 1
seeds: SEED = $(shell sed -n 's/^seed: *\([0-9-]*\).*/\1/p' params.yaml)
seeds: repository $(VENV)/installed ## the experiment with N=5 seeds, and what they show together in the report
	@test $(N) -gt 1 || { echo 'N=$(N): a study needs two seeds or more'; exit 1; }
	dvc repro
	dvc exp run --queue --set-param "seed=range($$(($(SEED) + 1)),$$(($(SEED) + $(N))))"
	dvc exp run --run-all --jobs $(JOBS)
	python -m stages.seeds
	dvc repro

test: repository $(VENV)/installed ## the tests
	pytest

test-slow: repository $(VENV)/installed ## longer tests of the same: more interruptions, more odd files
	pytest -m slow

lint: $(VENV)/installed ## style and common mistakes
	ruff check .
	ruff format --check .

repository:
	@git rev-parse --git-dir >/dev/null 2>&1 || { \
	    echo 'This folder is no git repository, which DVC needs: clone the project, or run'; \
	    echo '    git init && git add . && git commit -m "start"'; exit 1; }
	@test -f .dvc/config || { echo 'The folder .dvc is missing: git restore .dvc'; exit 1; }

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    f"Python 3.11 or newer is needed, and $(PYTHON) is {sys.version.split()[0]}: try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt pip setuptools
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --only-deps .
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --group test --group lint
	@touch $@
