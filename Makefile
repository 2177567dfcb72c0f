# make setup         install what is needed: Debian packages and a virtual environment in .venv
# make trace         the main job; make trace EXPERIMENT=net2a-sec1 ARGS='--rounds 20'
# make test          lint and tests, unit before kernel (root) before whole jobs; 20 minutes
# make test-long     the suites that make test leaves out: training, every option, every transport, faults; an hour
# make bench         what watching costs; BENCH_QUICK=1 for a first look, BENCH_ARGS='--only net0-sec3' for a part
# make smoke         every level without a profile and under net2, three rounds each, and their page; 4 minutes
# make lint          ruff, mypy and the import contract
# make test-fresh    trace and test on a fresh machine: a minimal Debian in a directory, from nothing (root)
# make test-vm       the kernel tests under Debian's stock kernel (netem, kprobes) in QEMU; about 10 minutes
# make test-cluster  a real API server, and a real node with pods of our images, both built first: the tests take
#                    20 minutes, building once another 20
# make api-server    what of it the tests with an API server alone take
# make test-frameworks  unmodified Flower, traced: rounds and times against what the app measured itself; an hour
# make setup-tests, make setup-bench: what tests and benchmarks need on top of setup
# make validate-faults  runs that are broken in every known way, and 30 healthy ones, all diagnosed; about 90 minutes
#                    (an interrupted one goes on: make validate-faults FAULTS_ARGS='--resume runs/faults-...')
# make images        the agent's image and the workload's, with docker, podman or buildah; without one as OCI
#                    archives in build/images, from Debian and PyPI packages (root; 2 and 3 minutes)
# make policy-packets  1,000 random sets of policies against real packets; 7 minutes (root)
# make publish-study STUDY=runs/paper-80  a finished study into the tree: record, report, the README's table and figure
# make quiet-pairs   20 pairs of runs on a quiet machine without a false alarm of contention; 15 minutes

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
TESTS_STAMP := $(VENV)/.setup-tests-stamp
BENCH_STAMP := $(VENV)/.setup-bench-stamp

.PHONY: publish-study setup setup-tests setup-bench setup-frameworks trace smoke test test-long test-frameworks test-fresh \
    test-vm test-cluster api-server cluster-node images policy-packets quiet-pairs validate-faults lint bench
.DEFAULT_GOAL := setup

setup: $(STAMP)
setup-tests: $(TESTS_STAMP)
setup-bench: $(BENCH_STAMP)

setup-frameworks: $(STAMP)
	PYTHON=$(PYTHON) tools/setup-frameworks

$(STAMP): pyproject.toml setup.py constraints.txt Makefile tools/setup-system
	PYTHON=$(PYTHON) tools/setup-system job
	test -x $(VENV)/bin/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	$(RUN) pip install --quiet --no-input --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[dev,workload]'
	touch $@

$(TESTS_STAMP): $(STAMP) tools/kubectl tools/prometheus
	PYTHON=$(PYTHON) tools/setup-system tests
	tools/kubectl
	tools/prometheus
	# Without what it depends on: PyPI's is built for another torch than ours.
	$(RUN) pip install --quiet --no-input --disable-pip-version-check --no-deps -c constraints.txt torchvision
	touch $@

$(BENCH_STAMP): $(STAMP)
	PYTHON=$(PYTHON) tools/setup-system bench
	PYTHON=$(PYTHON) tools/setup-frameworks flwr-1.42
	touch $@

trace: $(STAMP)
	@$(RUN) ztprobe trace --experiment $(EXPERIMENT) $(ARGS)

smoke: $(STAMP)
	@$(RUN) ztprobe sweep smoke

lint: $(STAMP)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/python -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-logo

bench: $(BENCH_STAMP)
	@$(RUN) bench $(BENCH_ARGS)

test: lint $(TESTS_STAMP)
	PYTEST_ADDOPTS="$${PYTEST_ADDOPTS:--m 'not long'}" $(RUN) pytest

test-long: $(TESTS_STAMP)
	$(RUN) pytest -m long

test-frameworks: setup-frameworks
	$(RUN) pytest tests/frameworks

test-fresh:
	@tools/fresh-machine

validate-faults: $(STAMP)
	@$(RUN) ztprobe validate --faults $(or $(FAULTS_ARGS),--healthy)

policy-packets: $(STAMP)
	ZTPROBE_POLICY_PACKET_LONG_SETS=1000 $(RUN) pytest -s tests/kernel/test_policy_packets.py -m long

publish-study: $(STAMP)
	@$(RUN) tools.publish_study $(STUDY)

quiet-pairs: $(STAMP)
	ZTPROBE_QUIET_PAIRS=20 $(RUN) pytest -s tests/e2e/test_contention.py

test-vm: $(STAMP)
	@tools/test-vm

images:
	@tools/images

api-server:
	PYTHON=$(PYTHON) tools/setup-system api-server
	tools/kube-cluster build etcd kube-apiserver

# By archives, whatever container engine is there: the node takes nothing else.
IMAGE_PARTS := constraints.txt $(wildcard tools/image_archive/*.py)
build/images/agent.oci.tar: $(IMAGE_PARTS) $(wildcard images/agent*) \
    $(shell find analysis ebpf manifests netprofiles ztprobe -type f ! -name '*.pyc')
	BUILDER=none tools/images agent
build/images/fl.oci.tar: $(IMAGE_PARTS) $(wildcard images/fl* fl/*.py fl/*/*.py)
	BUILDER=none tools/images fl

cluster-node: $(STAMP) build/images/agent.oci.tar build/images/fl.oci.tar
	PYTHON=$(PYTHON) tools/setup-system api-server node
	tools/kube-cluster build

test-cluster: $(TESTS_STAMP) cluster-node
	$(RUN) pytest tests/kernel/test_cluster.py tests/kernel/test_cluster_deploy.py \
	    tests/kernel/test_cluster_attach.py tests/kernel/test_cluster_drops.py \
	    tests/kernel/test_cluster_nodes.py tests/kernel/test_cluster_experiment_nodes.py \
	    tests/kernel/test_cluster_trace.py tests/kernel/test_cluster_doctor.py \
	    tests/cluster
