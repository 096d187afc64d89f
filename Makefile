# Two commands matter: `make replicate` (raw text to a scored report) and `make test`.
PYTHON ?= python3
VENV   ?= .venv
TEST_PROCESSES ?= 3
CHECK_PROCESSES ?= 2
RECIPE ?= configs/assistant.yaml
# Asked of the finished assistant: a sum that no training file has.
ASK    := replica chat runs/assistant:grpo --temperature 0 --once "What is 64 + 16?"
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Every shell script of the project.
SCRIPTS := launch/*.sh benchmarks/*.sh .ci/run

.DEFAULT_GOAL := help
.PHONY: help setup preflight replicate check test chaos lint bench docs docs-site wheel constraints clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: preflight $(STAMP) ## Virtual environment with the pinned dependencies

preflight:
	@sh launch/preflight.sh "$(PYTHON)" . $(if $(wildcard $(STAMP)),1,6)

# Made again only when what it depends on changed. torch first and by name, so that pip resolves it to the build that
# the machine's package index prefers; then everything else beside it.
$(STAMP): pyproject.toml constraints.txt | preflight
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing the pinned dependencies into $(VENV) (two to five minutes the first time) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data,eval,chat,dev,docs]'
	@touch $@

replicate: setup ## All of RECIPE (configs/assistant.yaml): data, training and scores of base and stages, report
	@$(BIN)/replica run $(RECIPE)
ifeq ($(RECIPE),configs/assistant.yaml)
	@echo '$$ $(ASK)'
	@$(BIN)/$(ASK)
endif

check: setup ## The inner loop: format, lint, types and the fast unit tests
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n $(CHECK_PROCESSES) --dist loadfile -q -m "not slow and not chaos" --durations=0 --durations-min=5 tests/unit

# Three processes on two cores: some tests wait for other processes, which end, die or are declared dead. The longest
# files come first.
test: setup ## The tests, about fourteen minutes on two cores (chaos apart)
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

chaos: setup ## What takes minutes: kills, stops, cut links, damaged inputs, two hosts, ssh, Slurm, Ray (root, Linux)
	@$(BIN)/python -m pytest -m chaos

lint: setup ## Format, lint, types, shell scripts, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	bash -n $(SCRIPTS)
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/typos

bench: setup ## Side by side with peers, minutes each (NANOGPT=DIR, a clone, and LITGPT=PYTHON add training peers)
	@test -x .venv-bench/bin/python || "$(PYTHON)" -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check 'datatrove[io,processing]==0.10.1' orjson
	$(BIN)/python benchmarks/encode.py --peer .venv-bench/bin/python configs/corpus/gutenberg-train.jsonl.zst
	$(BIN)/python benchmarks/memory_flat.py
	@if [ -n "$(NANOGPT)" ]; then $(BIN)/python benchmarks/shakespeare.py --nanogpt "$(NANOGPT)"; fi
	$(BIN)/python benchmarks/train.py $(if $(NANOGPT),--nanogpt "$(NANOGPT)") $(if $(LITGPT),--litgpt "$(LITGPT)")
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/scaling.py

docs: setup ## Write docs/recipe.md and configs/recipe.schema.json from the schema
	$(BIN)/python -m launch.docs

docs-site: setup ## The documentation as a site with an API reference, in build/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# From a copy: setuptools leaves `build/lib` beside the sources, and would take files from it that are long gone.
wheel: setup ## A wheel of the last commit, in dist/
	@rm -rf build/wheel && mkdir -p build/wheel dist && git archive HEAD | tar -x -C build/wheel
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist build/wheel
	@ls -d dist/*.whl

constraints: setup ## Write constraints.txt from this environment
	@{ grep '^#' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | grep -v '^#' | sed 's/+cpu$$//'; } > .constraints.partial
	@mv .constraints.partial constraints.txt

clean: ## Remove the environment and caches; runs/ stays
	rm -rf $(VENV) build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache
