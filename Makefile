# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes its own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all lint bench fuzz clean

test: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not full"

demo: $(VENV)/demo
	$(BIN)/lora-hub demo

# The full counts that the issues name; run before an issue is closed.
test-all: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.against_hub_client
	$(BIN)/python -m benchmarks.against_hub_client --gigabit
	$(BIN)/python -m benchmarks.verify_speed
	$(BIN)/python -m benchmarks.check_speed

# Until it is stopped, or for MINUTES; what goes wrong is saved.
fuzz: $(VENV)/test
	cd tests && ../$(BIN)/python -m fuzz $(if $(MINUTES),--minutes $(MINUTES))

$(VENV)/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[torch]'
	touch $@

$(VENV)/demo: $(VENV)/base demo-requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r demo-requirements.txt
	touch $@

$(VENV)/test: $(VENV)/base
	$(PIP) -e '.[torch,test,lint]'
	touch $@

$(VENV)/bench: $(VENV)/test
	$(PIP) -e '.[torch,test,lint,bench]'
	touch $@

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache
