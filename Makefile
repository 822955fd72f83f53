# `make demo` and `make test` need nothing but python3 (3.11 or newer) and a network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that share the tests, each a file at a time.
JOBS ?= 2

# A crash ends the run; so does a test that leaves something behind, or takes longer than pyproject.toml says.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart=0

.PHONY: demo test heavy lint clean

demo: $(VENV)/.demo
	$(BIN)/fasttrain demo

test: $(VENV)/.dev lint
	$(PYTEST) --durations=15

heavy: $(VENV)/.dev
	$(PYTEST) -m heavy -o faulthandler_timeout=1800

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	bash -n launch.sh

$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[$*]'
	touch $@

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

clean:
	rm -rf $(VENV) build *.egg-info
