PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
# Two processes share two cores: more threads each would only fight.
TEST_WORKERS ?= 2

.PHONY: demo test lint bench install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e ".[test,lint]"
	touch $@

demo: $(STAMP)
	$(BIN)/gadgetron-inr demo --output demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=85

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

bench: $(STAMP)
	$(BIN)/gadgetron-inr bench standard --peer bart --json benchmarks/results --readme README.md

clean:
	rm -rf $(VENV) demo build *.egg-info
