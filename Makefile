# Everything that a newcomer or CI needs; the first use sets up .venv with the tested versions.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint setup clean

demo: setup  ## Compare the strategies on clients of one class each: table and plot.
	@$(BIN)/python -m experiments.heterogeneous.simulate

test: setup  ## Run all tests.
	@$(BIN)/python -m pytest $(ARGS)

lint: setup build/types  ## Check style and types.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@MYPYPATH=build/types $(BIN)/mypy -p fedmedian -p experiments

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

# The package as it is installed, for tools that follow files only.
build/types: FORCE
	@rm -rf $@ && mkdir -p $@/fedmedian
	@ln -s ../../../fedmedian/* ../../../clients ../../../strategies $@/fedmedian
	@ln -s ../../experiments $@/experiments

clean:  ## Remove what the targets above have made.
	rm -rf $(VENV) build experiments/results .mypy_cache .pytest_cache .ruff_cache .hypothesis

FORCE:
