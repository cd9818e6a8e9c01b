# sandboxkernel: two commands on a fresh Debian or Ubuntu machine, as root:
#   make demo   sets everything up and runs the notebooks in sandboxes
#   make test   runs every test that this machine can run

VENV      ?= .venv
PYTHON    ?= python3
BIN       := $(VENV)/bin
STAMP     := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
BROWSER_STAMP := $(VENV)/.installed-browser
# An environment of its own: what it holds becomes the image that is measured.
BENCH_VENV ?= .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed-bench
BENCH     := $(BENCH_VENV)/bin/python -m tests.benchmarks

.PHONY: help demo lab test check lint types unit integration escape conformance hostile browser test-runc test-docker man deb test-package first-hour test-vm test-vm-all lanes audit bench bench-peers bench-scale soak endurance crashes faults neighbour third-party fuzz fuzz-guided docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s ':'

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: apt-get install python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || sh tools/apt-install.sh python3-venv
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(VENV)/bin/python pyproject.toml $(shell find sandboxkernel runtime kernelspecs packaging -type f -not -name '*.pyc')
	$(BIN)/pip install --quiet --disable-pip-version-check '.[lab]' nbclient nbconvert numpy
	@touch $@

# The programs that tests run in sandboxes (git, compilers, node), another runtime, and OCI's schema.
$(TEST_STAMP): $(STAMP)
	@if [ "$$(id -u)" = 0 ]; then sh tools/apt-install.sh gcc libc6-dev git nodejs runc bubblewrap golang-github-opencontainers-specs-dev groff-base libcap-ng-utils libcap2-bin; fi
	$(BIN)/pip install --quiet --disable-pip-version-check '.[test]'
	@touch $@

$(BROWSER_STAMP): $(TEST_STAMP)
	sh tools/apt-install.sh chromium
	$(BIN)/pip install --quiet --disable-pip-version-check '.[browser]'
	@touch $@

$(BENCH_STAMP): pyproject.toml $(shell find sandboxkernel runtime kernelspecs packaging -type f -not -name '*.pyc')
	$(MAKE) VENV=$(BENCH_VENV) $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check '.[bench]'
	@touch $@

demo: $(STAMP) ## Run the notebooks in sandboxes and say what was isolated and capped
	$(BIN)/python tools/demo.py

lab: $(STAMP) ## Open JupyterLab with the kernel "Sandboxed Python"
	$(BIN)/jupyter lab --notebook-dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

check: $(TEST_STAMP) ## Format, lint, types and unit tests: under a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit -q

lint types unit: check

integration: $(TEST_STAMP) ## Real cgroups, mounts, daemon
	$(BIN)/python -m pytest tests/integration -q

escape: $(TEST_STAMP) ## Attacks on real sandboxes, each with its control
	$(BIN)/python -m pytest tests/escape -q

hostile: $(TEST_STAMP) ## Hostile input: fuzzed requests, abused sockets, full disks, broken files
	$(BIN)/python -m pytest tests/hostile -q

conformance: $(TEST_STAMP) ## The provisioner contract and real Jupyter clients
	$(BIN)/python -m pytest tests/conformance -q

browser: $(BROWSER_STAMP) ## JupyterLab in Chromium
	$(BIN)/python -m pytest tests/browser -q

test: check $(BROWSER_STAMP) ## Everything
	@# What is not compiled is compiled at every start of a daemon.
	@$(BIN)/python -m compileall -q sandboxkernel runtime
	SANDBOXKERNEL_TESTS_MUST_RUN=1 $(BIN)/python -m pytest tests/integration tests/escape tests/conformance tests/hostile tests/browser -q \
	  --junit-xml=test-results/native.xml

test-runc: $(TEST_STAMP) ## The lanes again, in containers that runc makes
	SANDBOXKERNEL_TEST_EXECUTOR=runc SANDBOXKERNEL_TESTS_MUST_RUN=1 $(BIN)/python -m pytest \
	  tests/integration tests/escape tests/conformance -q --junit-xml=test-results/runc.xml

test-docker: $(TEST_STAMP) ## Docker drives the OCI command line, beside runc
	sh tools/apt-install.sh docker.io
	$(BIN)/python -m pytest tests/docker -q

man: $(STAMP) ## Write the man pages into build/man
	PYTHONPATH=.:runtime $(BIN)/python tools/build_man.py

deb: man ## Build the Debian package into build/
	$(BIN)/python tools/build_deb.py

test-package: $(TEST_STAMP) man ## Install, use, upgrade and purge the package, as docs/first-hour.md does, in the machine
	sh tools/apt-install.sh mmdebstrap debian-archive-keyring e2fsprogs qemu-system-x86
	$(BIN)/python -m tests.vm tests/vm/test_package.py

first-hour: test-package ## The same, and write the page's outputs anew
	cp vm-results/first-hour.md docs/first-hour.md

test-vm: $(TEST_STAMP) ## Pure cgroup v2 and the units, in a virtual machine that systemd runs
	sh tools/apt-install.sh mmdebstrap debian-archive-keyring e2fsprogs qemu-system-x86
	$(BIN)/python -m tests.vm

test-vm-all: $(TEST_STAMP) ## The same with what takes minutes each: an hour
	sh tools/apt-install.sh mmdebstrap debian-archive-keyring e2fsprogs qemu-system-x86
	$(BIN)/python -m tests.vm --all

lanes: ## Write docs/lanes.md from the records of `make test`, `make test-runc` and `make test-vm-all`
	$(BIN)/python -m tests.lanes --v1 test-results/*.xml --v2 vm-results/*/junit-*.xml

bench: $(BENCH_STAMP) ## Every metric but those of 500 and more kernels, beside a plain kernel: half an hour
	$(BENCH) --json docs/benchmarks/bench.json
	$(BENCH).report docs/benchmarks/*.json

bench-peers: $(BENCH_STAMP) ## The first reply beside bubblewrap, runc, docker and gVisor
	sh tools/apt-install.sh bubblewrap runc docker.io runsc
	$(BENCH) --only peers --json docs/benchmarks/peers.json
	$(BENCH).report docs/benchmarks/*.json

bench-scale: $(BENCH_STAMP) ## The first reply among 1 to 500 kernels, and how far it goes to 1000
	$(BENCH) --only scale --json docs/benchmarks/scale.json
	$(BENCH).report docs/benchmarks/*.json

audit: $(TEST_STAMP) ## What one probe sees and can do in our sandboxes, docker, bubblewrap and gVisor; 3 minutes
	sh tools/apt-install.sh bubblewrap docker.io runc runsc
	PYTHONPATH=.:runtime $(BIN)/python -m tests.audit --json docs/benchmarks/audit.json --page docs/audit.md

fuzz: $(TEST_STAMP) ## Made-up requests of every operation of the API, with figures; 15 minutes
	PYTHONPATH=.:runtime $(BIN)/python -m tests.hostile.fuzz

fuzz-guided: $(TEST_STAMP) ## Made-up bytes for every reader of others' bytes, guided by coverage; SECONDS_IN_ALL=600
	PYTHONPATH=.:runtime $(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS_IN_ALL),600) --json docs/benchmarks/fuzz.json --page docs/security.md

faults: $(TEST_STAMP) ## Every privileged operation of the launcher, of zygotes and forks fails, with every errno; 20 minutes
	PYTHONPATH=.:runtime $(BIN)/python -m tests.faults --json docs/benchmarks/faults.json --page docs/security.md

crashes: $(TEST_STAMP) ## Kill daemon and launcher at every step and 200 random moments; 6 minutes
	PYTHONPATH=.:runtime $(BIN)/python -m tests.crashes --json docs/benchmarks/crashes.json

neighbour: $(TEST_STAMP) ## A victim's cells and writes beside each bomb; 5 minutes on an idle machine
	PYTHONPATH=.:runtime $(BIN)/python -m tests.neighbour --json docs/benchmarks/neighbour.json --page docs/security.md

third-party: $(TEST_STAMP) ## Tools that others wrote to examine or torment Linux, inside our sandboxes; 25 minutes
	sh tools/apt-install.sh libcap-ng-utils libcap2-bin util-linux gcc libc6-dev libpcap0.8 stress-ng trinity
	@$(BIN)/python -c 'import test.test_os' 2>/dev/null || \
	  sh tools/apt-install.sh libpython$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')-testsuite
	PYTHONPATH=.:runtime $(BIN)/python -m tests.third_party --json docs/benchmarks/third-party.json --page docs/third-party.md

soak: $(BENCH_STAMP) ## 10,000 starts and ends: nothing stays, nothing slows down; 10 minutes
	$(BENCH).soak --json docs/benchmarks/soak.json

docs: $(STAMP) ## Generate docs/openapi.json
	$(BIN)/python -c 'import json; from sandboxkernel.daemon.openapi import document; print(json.dumps(document(), indent=1))' > docs/openapi.json

endurance: $(BENCH_STAMP) ## 20 kernels at work for half an hour: nothing stays, nothing slows down
	$(BENCH).soak --kernels 20 --minutes 30 --json docs/benchmarks/endurance.json

clean: ## Remove what make made
	rm -rf $(VENV) $(BENCH_VENV) build dist test-results vm-results *.egg-info
