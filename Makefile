# Every target sets up what it needs: only Python 3.11 or newer and make are taken for granted.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check examples chaos format bench-echo bench-engine bench-gpu bench-overload bench-pipelines constraints clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO)  ## Start the embedded stack, run the main job on real images, stop everything
	$(BIN)/headrace demo $(ARGS)

test: $(DEV)  ## Run the whole suite, a process per core (ARGS="-k name" narrows it; KAFKA_HOME adds Apache Kafka)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 $(ARGS)

check: $(DEV)  ## Format, lint, types, import contracts, file sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/loq

format: $(DEV)  ## Format the sources and apply the safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

examples: $(DEV)  ## Run the three pipeline examples whole: every page, the whole index, chained and fused
	HEADRACE_TEST_EXAMPLES=all $(BIN)/python -m pytest tests/examples -s $(ARGS)

chaos: $(DEV)  ## Kill every kind of process under load and judge the answers (ARGS="kill-worker --repeats 3")
	$(BIN)/python -m tests.chaos $(ARGS)

bench-echo: $(DEV)  ## Measure the bare log and the whole path; writes build/bench/{log,echo}.json
	$(BIN)/python -m benchmarks.log_roundtrip
	$(BIN)/python -m benchmarks.echo $(ARGS)

bench-engine: $(DEV)  ## Measure the path against the bare model; writes build/bench/engine.json
	$(BIN)/python -m benchmarks.engine $(ARGS)

bench-overload: $(DEV)  ## Measure a minute of twice the capacity; writes build/bench/overload.json
	$(BIN)/python -m benchmarks.overload $(ARGS)

bench-gpu: $(DEV)  ## Measure one GPU, M0 to M5; writes benchmarks/<device>/ (needs the extra gpu; status 3 without a GPU)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-pipelines: $(DEV)  ## Measure what a step of a pipeline costs; writes build/bench/pipelines.json
	$(BIN)/python -m benchmarks.pipelines $(ARGS)

constraints: $(DEV)  ## Pin the newest allowed versions in constraints.txt
	$(BIN)/uv pip compile pyproject.toml --universal --upgrade --extra cpu --extra embedded --extra gateway --extra dev \
	  --no-annotate --no-header --no-emit-index-url --output-file constraints.txt

clean:  ## Remove the environment, caches and build outputs
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .loq_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip fetches uv, uv does the rest in a fraction of the time; where uv cannot run, pip does it all.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Headrace needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BIN)/.bootstrapped: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv || true
	@touch $@

define install
	$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python -c constraints.txt -e '.[$(1)]' || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef

$(DEMO): pyproject.toml constraints.txt | $(BIN)/.bootstrapped
	$(call install,cpu$(comma)embedded)
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/.bootstrapped
	$(call install,dev$(comma)cpu$(comma)embedded)
	@touch $(DEMO) $@

comma := ,
