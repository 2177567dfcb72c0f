# make setup   install what is needed: Debian packages and a virtual environment in .venv
# make trace   the main job; make trace EXPERIMENT=net2a-sec1 ARGS='--rounds 20'
# make test    lint and every test, unit before kernel (root) before whole jobs
# make bench   what watching costs; BENCH_QUICK=1 for a first look, BENCH_ARGS='--only net0-sec3' for a part
# make quiet-pairs 20 pairs of runs on a quiet machine without a false alarm of contention; 15 minutes
# make test-vm the kernel tests under Debian's stock kernel (netem, kprobes) in QEMU; about 10 minutes
# make lint    ruff, mypy and the import contract

# The distribution's Python, not the one that PATH finds: only that one sees python3-bpfcc.
PYTHON ?= /usr/bin/python3
# For instance --extra-index-url https://download.pytorch.org/whl/cpu, where PyPI's torch brings CUDA.
PIP_ARGS ?=
EXPERIMENT ?= net2-sec3
ARGS ?=

VENV := .venv
# `python -m` rather than the scripts in .venv/bin, which hold the path of the tree they were made in.
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.setup-stamp

.PHONY: setup trace test test-vm quiet-pairs lint bench
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile tools/setup-system
	PYTHON=$(PYTHON) tools/setup-system
	test -x $(VENV)/bin/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	$(RUN) pip install --quiet --no-input --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[dev]'
	touch $@

trace: $(STAMP)
	@$(RUN) ztprobe trace --experiment $(EXPERIMENT) $(ARGS)

lint: $(STAMP)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/python -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-logo

bench: $(STAMP)
	@$(RUN) bench $(BENCH_ARGS)

test: lint
	$(RUN) pytest

quiet-pairs: $(STAMP)
	ZTPROBE_QUIET_PAIRS=20 $(RUN) pytest -s tests/e2e/test_contention.py

test-vm: $(STAMP)
	@tools/test-vm
