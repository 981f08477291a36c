# Every target works from a bare clone: it makes its own .venv first (once; a stamp inside .venv says so).
#   make demo     five processes, a leader killed again and again, nothing lost
#   make test     everything that must hold before a change is taken (verify, seeds, then real clusters)
#   make verify   the fast part of it; writes nothing
#   make seeds    1,000 seeds of the simulator at the default length; make seeds FIRST=5000 SEEDS=200 for others
#   make fix      format, and mend what ruff can mend
#   make bench    the two benchmarks, at their defaults
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-warn-script-location
PYTEST := $(BIN)/python -m pytest -q
# Compiled when installed, as pip does with what is not editable: nodes start twice as fast as when each compiles it.
LIBRARY := actorraft transports statemachines
CODE   := $(LIBRARY) benchmarks examples tests

#   make slow     the long tests
.PHONY: demo test seeds slow verify fix bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/run.stamp
	@$(BIN)/python -m examples.demo

test: verify seeds
	@echo "== tests with real processes"
	@$(PYTEST) -m "cluster and not slow and not soak"

SEEDS ?= 1000
FIRST ?= 0
seeds: $(VENV)/dev.stamp
	@echo "== simulated seeds"
	@$(BIN)/python -m actorraft.simulation --seeds $(SEEDS) --first $(FIRST)

# Minutes, not seconds, each: kept out of the check of record, run before a release.
slow: $(VENV)/dev.stamp
	@$(PYTEST) -m "slow and not soak"

verify: $(VENV)/dev.stamp
	@echo "== format";           $(BIN)/ruff format --check --quiet $(CODE) || { echo "make fix mends this"; exit 1; }
	@echo "== lint";             $(BIN)/ruff check --quiet $(CODE)
	@echo "== types";            $(BIN)/mypy
	@echo "== import contracts"; $(BIN)/lint-imports --no-logo > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@echo "== longest";          $(BIN)/python -m tests.longest
	@echo "== fast tests";       $(PYTEST) -m "not cluster and not slow and not soak"

fix: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix --quiet $(CODE)
	$(BIN)/ruff format --quiet $(CODE)

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.election

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
