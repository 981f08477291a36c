# Every target works from a bare clone: it makes its own .venv first (once; a stamp inside .venv says so).
#   make demo     five processes, a leader killed again and again, nothing lost
#   make test     everything that must hold before a change is taken (tools, verify, 300 seeds, then real clusters)
#   make verify   the fast part of it, in under a minute on two cores; writes nothing
#   make seeds    1,000 seeds of the simulator at the default length; make seeds FIRST=5000 SEEDS=200 for others
#   make fix      format, and mend what ruff can mend
#   make bench    the two benchmarks, at their defaults
#   make docs     the site, in .cache/docs; a warning or a link that leads nowhere ends it
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-warn-script-location
PYTEST := $(BIN)/python -m pytest -q
# Where this is set, each process of the tests, and each that it starts, would compile all of them anew.
unexport PYTHONDONTWRITEBYTECODE
# Compiled when installed, as pip does with what is not editable: nodes start twice as fast as when each compiles it.
LIBRARY := actorraft transports statemachines parameter_server
CODE   := $(LIBRARY) benchmarks examples tests

#   make slow     the long tests
#   make tools    what comes from Debian and npm, for the tests that need it
SKIPPED := $(abspath $(VENV))/skipped.txt
.PHONY: demo test tools seeds slow verify static fast fix bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/run.stamp
	@$(BIN)/python -m examples.demo

test: tools
	@rm -f $(SKIPPED)
	@$(MAKE) --no-print-directory verify
	@$(MAKE) --no-print-directory seeds SEEDS=300
	@echo "== tests with real processes, and the long ones"
	@ACTORRAFT_SKIPPED=$(SKIPPED) $(PYTEST) --numprocesses auto --dist loadfile --durations 12 \
	  -m "(cluster or long) and not slow and not soak"
	@if [ -s $(SKIPPED) ]; then echo "== skipped"; cat $(SKIPPED); else echo "== nothing was skipped"; fi

# From Debian (as root) and npm, for the tests that need them; what cannot be installed is said here, and skipped there.
DEBIAN := prometheus nftables iproute2 tcpdump fiu-utils systemd
tools: $(VENV)/tools.stamp
$(VENV)/tools.stamp: $(VENV)/dev.stamp
	@echo "== tools from Debian and npm (once)"
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN) > $(VENV)/tools.log 2>&1 \
	  || { tail -3 $(VENV)/tools.log; echo "make tools: not all of $(DEBIAN) could be installed"; }; \
	  else echo "make tools: $(DEBIAN) need root and apt-get"; fi
	@if command -v npm > /dev/null; then npm install --silent --no-audit --no-fund --prefix $(VENV) pyright \
	  || echo "make tools: pyright could not be installed"; \
	  else echo "make tools: pyright needs npm"; fi
	@touch $@

SEEDS ?= 1000
FIRST ?= 0
seeds: $(VENV)/dev.stamp
	@echo "== simulated seeds"
	@$(BIN)/python -m actorraft.simulation --seeds $(SEEDS) --first $(FIRST)

# Minutes, not seconds, each: kept out of the check of record, run before a release.
slow: $(VENV)/dev.stamp
	@$(PYTEST) -m "slow and not soak"

# Side by side: the checker of types, which has read nothing yet on a fresh clone, and the tests.
verify: $(VENV)/dev.stamp
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target static fast

static: $(VENV)/dev.stamp
	@echo "== format";           $(BIN)/ruff format --check --quiet $(CODE) || { echo "make fix mends this"; exit 1; }
	@echo "== lint";             $(BIN)/ruff check --quiet $(CODE)
	@echo "== types";            $(BIN)/mypy
	@echo "== import contracts"; $(BIN)/lint-imports --no-logo > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@echo "== longest";          $(BIN)/python -m tests.longest

# One process more than there are cores, for each waits at times: for a socket, or for a deadline that is tested.
WORKERS = $(shell expr 1 + $$(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN))
fast: $(VENV)/dev.stamp
	@echo "== fast tests";       ACTORRAFT_SKIPPED=$(SKIPPED) $(PYTEST) --numprocesses $(WORKERS) -m "not cluster and not long and not slow and not soak"

fix: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix --quiet $(CODE)
	$(BIN)/ruff format --quiet $(CODE)

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.election

docs: $(VENV)/dev.stamp
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -b html -d .cache/docs-doctrees docs .cache/docs
	@echo "the site is in .cache/docs/index.html"

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ActorRaft needs Python 3.11 or later, not " + sys.version.split()[0] + "; say: make PYTHON=python3.11")'
	@echo "== making $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml setup.cfg | $(VENV)/bin/python
	@echo "== installing what it needs into $(VENV) (once)"
	@$(PIP) --editable '.[demo]'
	@$(BIN)/python -m compileall -q $(LIBRARY)
	@touch $@

$(VENV)/dev.stamp: pyproject.toml setup.cfg | $(VENV)/bin/python
	@echo "== installing the tools into $(VENV) (once)"
	@$(PIP) --editable '.[dev]'
	@$(BIN)/python -m compileall -q $(LIBRARY)
	@touch $@ $(VENV)/run.stamp
