# make check     set up what is needed, and look at this very machine
# make test      set up what is needed, and run the tests
# make test-vm   the tests that take a virtual machine with SR-IOV (QEMU; root); HOSTPREP_VM=all make test-vm: all of them
# make bench     what hostprep costs, as ratios to starting Python
# make lint      the linters alone (they are part of the tests)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: check test test-vm bench lint clean

check: $(VENV)/ready
	@$(BIN)/hostprep check

test: $(VENV)/ready
	$(BIN)/pytest -n auto $(PYTEST_ARGS)

# Two machines at a time: of the two threads with which QEMU emulates each, one has hardly anything to do.
test-vm: $(VENV)/ready
	$(BIN)/pytest -n2 --maxschedchunk 1 tests/vm $(PYTEST_ARGS)

bench: build/bench/ready
	@build/bench/bin/python tests/bench.py

lint: $(VENV)/ready
	$(BIN)/pytest tests/test_linters.py

# Debian and Ubuntu leave ensurepip out of python3; as root it is added, else the message says how.
define make_venv
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3-venv; \
	    else \
	        echo "error: $(PYTHON) cannot make virtual environments" >&2; \
	        echo "hint: sudo apt-get install python3-venv" >&2; exit 1; \
	    fi; }
	$(PYTHON) -m venv $(1)
endef

$(VENV)/ready: pyproject.toml Makefile
	$(call make_venv,$(VENV))
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# Installed as a user installs it: an editable install starts more slowly.
build/bench/ready: pyproject.toml Makefile $(wildcard hostprep/*.py hostprep/*/*.py checks/*.py)
	rm -rf build/bench
	$(call make_venv,build/bench)
	build/bench/bin/pip install --quiet --disable-pip-version-check .
	build/bench/bin/python -m compileall -q build/bench/lib
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
