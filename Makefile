# Everything that a newcomer or CI needs; the first use sets up .venv with the tested versions.

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test lint types bench setup clean

demo: setup  ## Compare the strategies on clients of one class each: table and plot.
	@$(BIN)/python -m experiments.heterogeneous.simulate

test: setup  ## Run all tests; ARGS="-m 'not slow'" leaves out what takes long.
	@$(BIN)/python -m pytest $(ARGS)

lint: setup types  ## Check style and types.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# Tools that only follow files need the package laid out as it is installed.
types: setup
	@rm -rf build/types && mkdir -p build/types/fedmedian
	@ln -s ../../../fedmedian/* ../../../clients ../../../strategies build/types/fedmedian
	@ln -s ../../experiments ../../benchmarks build/types
	@MYPYPATH=build/types $(BIN)/mypy -p fedmedian -p experiments -p benchmarks

bench: setup  ## Measure speed against peers in about 5 minutes; ARGS="median votes" for some.
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints.txt --editable '.[dev,bench]'
	@$(BIN)/python -m benchmarks $(ARGS)

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "Setting up .venv; this takes a few minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:  ## Remove what the targets above have made.
	rm -rf .venv build experiments/results benchmarks/results .mypy_cache .pytest_cache .ruff_cache .hypothesis
