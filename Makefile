# Every target sets up what it needs, and is quick where nothing changed.
PYTHON ?= python3
PORT   ?= 8000
MODEL  ?= postcard
INPUT  ?= examples/prompts.parquet
OUTPUT ?= out
RUN    ?= run
BENCH  ?= bench

BIN := .venv/bin
# Tests of Ray mostly wait for processes to start: one process has those that share a cluster.
ALL_TESTS = --numprocesses 2 --dist loadgroup
INSTALL = $(BIN)/pip install --quiet --constraint constraints.txt --editable

.PHONY: help setup serve render test lint format bench train clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/'

setup: .venv/.runtime  ## install what serving and rendering need into .venv

serve: .venv/.runtime  ## run the service: PORT=8000 MODEL=postcard
	@$(BIN)/python -m serving --port $(PORT) --model $(MODEL)

render: .venv/.runtime  ## render a dataset: INPUT=examples/prompts.parquet OUTPUT=out MODEL=postcard
	@$(BIN)/python -m jobs.render --input $(INPUT) --output $(OUTPUT) --model $(MODEL)

test: .venv/.dev  ## all tests; ARGS="-m 'not cluster'" for those without Ray, ARGS=--slow for more
	@$(BIN)/pytest $(or $(ARGS),$(ALL_TESTS))

lint: .venv/.dev  ## style, types, import contracts and the Dockerfile
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/hadolint deploy/Dockerfile

format: .venv/.dev  ## put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: .venv/.bench  ## both doors beside what others use, twenty minutes: BENCH=bench ARGS="--rounds 3"
	@mkdir -p $(BENCH)
	@TRANSFORMERS_VERBOSITY=error $(BIN)/python benchmarks/compare.py --bare --limit --calls 24 --rounds 1 \
		--json $(BENCH)/found.json --plot $(BENCH)/found.png $(ARGS)

train: .venv/.runtime  ## train the bundled model from nothing: RUN=run
	@$(BIN)/python -m models.postcard.training --run $(RUN)

clean:  ## remove the environment and what was made in ./out and ./bench
	rm -rf .venv out bench

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "There is no $(PYTHON) here. Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d. Try: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

.venv/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into .venv; the first time this takes some minutes ..."
	@$(INSTALL) .
	@touch $@

.venv/.%: .venv/.runtime
	@echo "Installing the $* tools ..."
	@$(INSTALL) ".[$*]"
	@touch $@
