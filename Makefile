PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# What the demo needs, and with it what tests and linters need.
READY  := $(VENV)/.ready
STAMP  := $(VENV)/.installed
# Python compiles what is imported when it is; of these packages that is the lesser part.
INSTALL := -m pip --disable-pip-version-check -q install --no-compile
PIP    := $(BIN)/python $(INSTALL) -c constraints.txt
# Two processes share two cores: more threads each would only fight.
TEST_WORKERS ?= 2
# Tests start many processes: what one compiles serves the others.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

# Versions of a Gadgetron image, in an environment of their own.
OLD_PYTHON ?= python3.11
OLD_VENV   := .venv-gadgetron
OLD_TESTS  ?= tests

.PHONY: demo test test-gadgetron-versions lint bench install clean

install: $(STAMP)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[pictures]"
	touch $@

$(STAMP): $(READY)
	$(PIP) -e ".[test,lint]"
	touch $@

demo: $(READY)
	$(BIN)/gadgetron-inr demo --output demo

test: $(STAMP)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=85

$(OLD_VENV)/.installed: pyproject.toml constraints-gadgetron.txt
	$(OLD_PYTHON) -m venv $(OLD_VENV)
	$(OLD_VENV)/bin/python $(INSTALL) -c constraints-gadgetron.txt torch
	$(OLD_VENV)/bin/python $(INSTALL) -c constraints-gadgetron.txt -e ".[test]"
	touch $@

test-gadgetron-versions: $(OLD_VENV)/.installed
	$(TEST_ENVIRONMENT) $(OLD_VENV)/bin/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile $(OLD_TESTS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos
	$(BIN)/hadolint docker/Dockerfile.*

bench: $(STAMP)
	$(BIN)/gadgetron-inr bench standard --peer bart --json benchmarks/results --readme README.md

clean:
	rm -rf $(VENV) $(OLD_VENV) demo build *.egg-info
