PYTHON ?= python3
JOBS ?= 2
ARGS ?=
TESTS ?= solvers sde_diffusion tests
BIN := .venv/bin

.PHONY: demo test check lint types docs format clean

demo: .venv/base.stamp  ## train on the bundled digits, sample with 20 evaluations, look at solvers side by side
	@$(BIN)/python -m benchmarks.first_use.demo

test: .venv/dev.stamp  ## the tests and doctests; ARGS="-m slow" runs the slow ones
	$(BIN)/pytest -n $(JOBS) --doctest-modules $(ARGS) $(TESTS)

check: lint types  ## lint, types, layout, and the tests and doctests of changed files
	$(BIN)/pytest -q -n $(JOBS) --doctest-modules tests/test_layout.py $$($(BIN)/python .ci/changed_tests.py)

lint: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev.stamp
	$(BIN)/mypy

docs: .venv/docs.stamp  ## the site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: .venv/dev.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv site dist .pytest_cache .mypy_cache .ruff_cache

# A stamp is written only when its installation succeeded, and is out of date when pyproject.toml changes.
.venv/base.stamp: pyproject.toml
	@echo "Installing into .venv (the first time takes a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/%.stamp: .venv/base.stamp
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
