# make help lists what there is. Everything is installed into $(VENV), with the exact versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: help install demo test screenshots figures check bench bench-full bench-check format ui clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Create the virtual environment and install the project

demo: install ## Train over three hospitals in one process, tracked in MLflow
	@$(BIN)/python examples/hospitals/make_pods.py
	@$(BIN)/bitfount-flows train examples/hospitals/job.yaml

test: $(VENV)/.installed-test ## Run all tests
	@$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

screenshots: $(VENV)/.installed-test ## Take the pictures of docs/images again, with Chromium
	@SCREENSHOTS=docs/images $(BIN)/pytest tests/browser

figures: $(VENV)/.installed-test ## Run the tests of all promises on safety, and write the table of docs/security.md
	@$(BIN)/python -m pytest -n 2 --dist loadscope -p tests.attacks.figures $$($(BIN)/python -m tests.attacks.figures)

check: $(VENV)/.installed-check ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install ## Measure the promises on speed: one table
	@$(BIN)/python benchmarks/bench.py

bench-full: install ## The same with more runs, large tables and many clients; gigabytes of disk
	@$(BIN)/python benchmarks/bench.py --full

bench-check: install ## Fail where a figure is over twice the recorded one
	@$(BIN)/python benchmarks/bench.py --quick --check benchmarks/recorded.json

format: $(VENV)/.installed-check ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

ui: install ## Open the MLflow UI on the demo's runs
	@$(BIN)/bitfount-flows ui

clean: ## Remove the virtual environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/bin/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing the project; the first time takes a few minutes"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing the project and what its tests need; the first time takes a few minutes"
	@$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-check: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing the project and its checks; the first time takes a few minutes"
	@$(PIP) --editable '.[check]'
	@touch $@ $(VENV)/.installed
