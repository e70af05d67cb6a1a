# Everything that a newcomer or CI needs; the first use sets up .venv with the tested versions.

PYTHON ?= python3.11
BIN := .venv/bin
OLDEST_BIN := .venv-oldest/bin
OLDEST = $(shell sed -n 's/^dependencies = \[\(.*\)\]$$/\1/p' pyproject.toml | \
	sed 's/,<[0-9]*//g; s/[",]//g; s/>=/==/g')
NEWEST_VENV = .venv-newest-$(notdir $(PYTHON))

.PHONY: help demo deploy-demo test test-oldest test-newest lint types docs figures bench release setup clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: setup  ## Compare the strategies on clients of one class each: table and plot.
	@$(BIN)/python -m experiments.demos.simulation

deploy-demo: setup  ## Deploy with TLS and keys; a node dies in a round and returns: 3 minutes.
	@$(BIN)/python -m experiments.demos.deployment

# One thread for each process: there are as many of these as cores.
test test-oldest test-newest: export OMP_NUM_THREADS = 1

# Pytest rewrites all assertions: with what it keeps of that, not in each process of each run.
test test-oldest test-newest: export PYTHONDONTWRITEBYTECODE =

# A class's tests share what they start. In their own order the slow ones come before the many fast
# ones, so that all processes end together. Slow ones wait, so that a third process has work.
test: setup  ## Run all tests; ARGS="-m 'not slow'" leaves out what takes long.
	@$(BIN)/python -m pytest --numprocesses $(if $(findstring not slow,$(ARGS)),2,3) --dist loadscope --no-loadscope-reorder --durations=10 $(ARGS)

test-oldest: .venv-oldest/installed  ## Run the fast tests on the oldest dependencies that we declare.
	@$(OLDEST_BIN)/python -m pytest --numprocesses 4 --dist loadscope --no-loadscope-reorder -m 'not slow'

# Without torch and the experiments, which ask for gigabytes: what needs them is skipped, and says so.
test-newest:  ## Run the fast tests on the newest dependencies; PYTHON=python3.13 is another Python.
	@test -x $(NEWEST_VENV)/bin/python || $(PYTHON) -m venv $(NEWEST_VENV)
	@$(NEWEST_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
		--upgrade --upgrade-strategy eager --editable '.[test]'
	@$(NEWEST_VENV)/bin/python -m pytest --numprocesses 4 --dist loadscope --no-loadscope-reorder \
		-m 'not slow' $(ARGS)

lint: setup types  ## Check style and types.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup  ## Check types alone.
	@$(BIN)/mypy -p fedmedian -p experiments -p benchmarks

docs: setup  ## Build the documentation as a site, in build/docs; any warning is an error.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml
	@echo "Written: build/docs; to look at it: $(BIN)/python -m http.server --directory build/docs"

figures: setup  ## Try all claims: docs/paper.md, docs/bits.md; ARGS="toy bits-10" for some.
	@$(BIN)/python -m experiments.claims $(ARGS)

bench: setup  ## Measure speed and memory against peers in about 12 minutes; ARGS="median votes" for some.
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints.txt --editable '.[dev,bench]'
	@$(BIN)/python -m benchmarks $(ARGS)

# The version is the tag's: hatch-vcs reads it.
release: setup  ## Tag VERSION=… and build its wheel and sdist in dist/; it publishes nothing.
	@test -n "$(VERSION)" || { echo "Which one? make release VERSION=0.1.0"; exit 2; }
	@test -z "$$(git status --porcelain)" || { echo "Commit first: a release is of what is committed."; exit 2; }
	@grep -q '^## \[$(VERSION)\]' CHANGELOG.md || \
		{ echo "CHANGELOG.md has no heading [$(VERSION)]: rename [Unreleased]."; exit 2; }
	@git tag --annotate v$(VERSION) --message "fedmedian $(VERSION)"
	@rm -rf dist
	@$(BIN)/python -m hatchling build --directory dist

setup: .venv/installed  ## Set up .venv with the tested versions.

.venv/installed: pyproject.toml constraints.txt
	@echo "Setting up .venv; this takes a few minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

# Flower says itself which Ray it needs; newer pyarrow, which datasets has, needs a newer NumPy.
.venv-oldest/installed: pyproject.toml constraints.txt
	@echo "Setting up .venv-oldest with $(OLDEST); this takes a few minutes the first time."
	@test -x $(OLDEST_BIN)/python || $(PYTHON) -m venv .venv-oldest
	@grep -Ev '^(cryptography|flwr|ml-dtypes|numpy|pycryptodome|ray|scipy)==' constraints.txt > .venv-oldest/constraints.txt
	@echo 'pyarrow<22' >> .venv-oldest/constraints.txt
	@$(OLDEST_BIN)/python -m pip install --disable-pip-version-check --quiet \
		--constraint .venv-oldest/constraints.txt --editable '.[dev]' $(OLDEST)
	@touch $@

clean:  ## Remove what the targets above have made.
	rm -rf .venv .venv-* build experiments/results benchmarks/results .mypy_cache .pytest_cache .ruff_cache .hypothesis
