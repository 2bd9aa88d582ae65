# `make demo` on a fresh machine sets everything up and runs the whole pipeline; `make help` lists the rest.

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo repro queue seeds compare test test-fast test-slow test-gpu mutants lint repository environment

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
unexport PIP_USER PIP_TARGET PIP_PREFIX PYTHONSAFEPATH # settings that would install or look for modules elsewhere
# DVC keeps a state of its own, part of which it unpickles, in a folder of /var/tmp that every user may write to.
# This one is private.
export DVC_SITE_CACHE_DIR ?= $(CURDIR)/.dvc/tmp/site

# What the demonstration changes of the full experiment: small enough for a laptop, without network or GPU.
DEMO := data.source=digits augment.flip=false train.batch_size=64 \
        cnn.epochs=10 resnet.epochs=10 resnet.base_channels=16

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The experiment runs in a repository of its own, and what it leaves becomes a branch of this one, so that the work tree
# changes in one step or not at all. That needs no history, which a shallow clone lacks, and an interrupted one goes on.
# The same instructions and threads give the same bytes on x86-64 processors of any kind (docs/reproducibility.md); without
# MKL_CBWR, MKL computes linear layers by other kernels on Intel's than on AMD's.
APART := .dvc/tmp/demo
demo: export ATEN_CPU_CAPABILITY ?= avx2
demo: export ONEDNN_MAX_CPU_ISA ?= AVX2
demo: export MKL_CBWR ?= COMPATIBLE
demo: export OMP_NUM_THREADS ?= 2
demo: repository environment ## the whole pipeline on scikit-learn's digits, in minutes
	@if test -n "$$(git status --porcelain --untracked-files=no; git status --porcelain dvc.lock metrics plots)"; then \
	    echo 'There are changes that are not committed (git status), and the demonstration needs a branch of its own:'; \
	    echo 'commit them, put them aside (git stash --include-untracked), or drop them (git restore .).'; exit 1; fi
	@git config user.name >/dev/null && git config user.email >/dev/null || { \
	    git config user.name demo; git config user.email demo@localhost; \
	    echo 'git had no user name, without which DVC keeps no experiment: it is "demo" in this clone now.'; }
	@set -e; if ! git show-ref --quiet --verify refs/heads/demo; then \
	    test "$$(cat $(APART)/.git/from 2>/dev/null)" = "$$(git rev-parse HEAD)" || { \
	        rm -rf $(APART); git clone --quiet --no-local --depth 1 . $(APART); \
	        for key in user.name user.email; do git -C $(APART) config $$key "$$(git config $$key)"; done; \
	        dvc --cd $(APART) cache dir --quiet --local ../../cache; git rev-parse HEAD > $(APART)/.git/from; }; \
	    dvc --cd $(APART) exp run --quiet $(DEMO:%=--set-param %) || { \
	        echo 'To hear what DVC says to it: dvc --cd $(APART) exp run'; exit 1; }; \
	    export GIT_INDEX_FILE="$(CURDIR)/$(APART)/.git/results"; git --work-tree=$(APART) add --all; \
	    git branch demo $$(git commit-tree $$(git write-tree) -p HEAD -m 'make demo'); \
	elif ! git merge-base --is-ancestor HEAD refs/heads/demo; then \
	    echo 'The branch demo did not begin here. Keep it under another name (git branch --move demo old-demo),'; \
	    echo 'or go to it (git switch demo).'; exit 1; fi
	@test "$$(git symbolic-ref --quiet --short HEAD)" = demo || git switch --quiet demo
	@dvc checkout --quiet && rm -rf $(APART)
	@echo
	@echo 'The report is report/index.html. This is the branch demo, a DVC workspace.'
	@sha256sum --status --check docs/results/demo.sha256 2>/dev/null && \
	    echo 'The models have the published bytes (docs/results/demo.sha256).' || \
	    echo 'The models have other bytes than those published: docs/reproducibility.md.'
	@echo 'Go on with, for example,'
	@echo '    source $(VENV)/bin/activate'
	@echo '    dvc exp run -S train.weight_decay=1e-3'
	@echo '    dvc metrics diff; dvc plots diff; make compare'
	@echo 'Each `dvc exp run` starts from the files as they are, so changes add up;'
	@echo '`git restore . && dvc checkout` takes them back, and DVC keeps the experiments'
	@echo '(dvc exp list -A). Back to CIFAR-10, and then `make repro`:'
	@back=$$(git rev-parse --quiet --verify --abbrev-ref '@{-1}') || back=main; \
	    echo "    git switch $${back:---detach $$(git rev-parse --short '@{-1}')}"

repro: repository environment ## the experiment as params.yaml has it, as far as it is not up to date
	dvc repro

# JOBS experiments at a time. They share the cores: the threads of two that each use all of them wait for each other.
JOBS ?= 1
CORES = $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
queue seeds: export OMP_NUM_THREADS ?= $(shell expr $(CORES) / $(JOBS) \| 1)

queue: repository environment ## the experiments queued by `dvc exp run --queue`, JOBS=1 at a time
	@echo 'After Ctrl-C they go on without a terminal; `dvc queue stop --kill` ends them.'
	@dvc exp run --run-all --jobs $(JOBS)

# Experiments that differ in the seed alone, the first with that of params.yaml. Each runs in a folder of DVC's, and ends
# with this command; what one has finished is not run again, whatever became of the others.
seeds: repository environment ## the experiment with the seeds of `study`, and what they show together in the report
	@test "$$(git rev-parse --is-shallow-repository)" = false || { \
	    echo 'This clone is shallow, and DVC keeps no experiment in one: git fetch --unshallow'; exit 1; }
	@dvc repro
	@seeds=$$(python -m stages.commands.seeds --missing) || exit 1; echo "Seeds to train: $${seeds:-none}"; \
	    printf %s "$$seeds" | tr , '\n' | xargs -P $(JOBS) -I SEED \
	    dvc --wait-for-lock exp run --quiet --temp --set-param seed=SEED || { \
	        echo 'To hear what DVC says to a seed: dvc exp run --temp -S seed=N'; exit 1; }
	@python -m stages.commands.seeds
	@dvc repro

compare: repository environment ## the experiments of this commit side by side: changes and accuracies
	@dvc exp show --only-changed --drop 'metrics|models|plots|^data$$|Created|State|Executor|.*difference|.*\.p$$' --no-pager
	@python -m stages.commands.seeds --missing >/dev/null || : # names those whose parameters no model was trained with
	@echo 'A column is missing? COLUMNS=160 make compare'
	@echo 'Each is one training on the same test images: the best of many is partly luck.'

# Two at a time, a file each, in the order of their names (by default files of few tests come last, and those are slow);
# one thread apiece, since those of OpenMP wait for each other by spinning.
test test-fast test-slow mutants: export OMP_NUM_THREADS := 1
test: repository environment ## the tests, minutes
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-fast: environment ## those of single modules, under a minute: for each save of a file
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests/common tests/models tests/training tests/evaluation

test-slow: repository environment ## longer tests of the same: more interruptions, more odd files
	pytest -m slow

test-gpu: environment ## on a GPU: its tests, and the figures of docs/performance.md
	python -m benchmarks.gpu --only tests bytes stage
	python -m benchmarks.gpu --only replay profile speed precision

# One module or function: MUTANTS='stages.training.step*'. `mutmut show NAME` prints what was changed, `mutmut browse` all.
mutants: environment ## small faults, one at a time, and the tests that notice them: a night
	mutmut run $(MUTANTS)
	@mutmut results | sed '/: not checked/d'

lint: environment ## style, common mistakes and types
	ruff check .
	ruff format --check .
	mypy stages

repository:
	@said=$$(LC_ALL=C git rev-parse --git-dir 2>&1 >/dev/null) || { \
	    echo "$$said"; \
	    case "$$said" in *'not a git repository'*) \
	        echo 'DVC needs one: clone the project, or run git init && git add . && git commit -m "start"';; \
	    esac; exit 1; }
	@test -f .dvc/config || { echo 'The folder .dvc is missing: git restore .dvc'; exit 1; }
	@mkdir -p .dvc/tmp && mkdir -p -m 700 "$$DVC_SITE_CACHE_DIR"

# The environment is complete when the stamp in it names this place, its Python and these packages. One whose installation
# was interrupted, whose clone was moved or whose Python is gone is made anew. A link is somebody's own, and is left alone.
# uv reads no settings of pip: a mirror is named in UV_DEFAULT_INDEX.
STATE = { pwd -P; $(VENV)/bin/python -VV; cat pyproject.toml constraints.txt; } 2>&1 | cksum
environment:
	@if test -L $(VENV) || test "$$(cat $(VENV)/complete 2>/dev/null)" = "$$($(STATE))"; then exit 0; fi; \
	set -e; PATH=$${PATH#*:}; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    f"Python 3.11 or newer is needed, and $(PYTHON) is {sys.version.split()[0]}: try make PYTHON=python3.12")'; \
	echo 'Setting up $(VENV): about 3 GB to download, most of it for GPUs, and 6 GB on disk (less with UV_TORCH_BACKEND=cpu). This takes minutes.'; \
	$(PYTHON) -m venv --clear $(VENV); \
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv; \
	test -t 2 || quiet=--quiet; \
	$(VENV)/bin/uv pip install $$quiet --compile-bytecode --python $(VENV)/bin/python --constraint constraints.txt \
	    --requirements pyproject.toml --group test --group lint; \
	echo 'export DVC_SITE_CACHE_DIR="$$VIRTUAL_ENV/../.dvc/tmp/site"; mkdir -p -m 700 "$$DVC_SITE_CACHE_DIR"; \
	    unset PYTHONSAFEPATH' >> $(VENV)/bin/activate; \
	$(STATE) > $(VENV)/complete
