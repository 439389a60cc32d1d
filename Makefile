# make tune [ARGS="--app module:app ..."]   make test [ARGS="tests/test_space.py -k log"]   make lint
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := morphling_ray tests $(patsubst %/,%,$(sort $(dir $(wildcard experiments/*.py benchmarks/*.py docs/*.py))))

# Every path below is relative, so that a checkout in a folder with spaces works. The stamps are made last: an install
# that was cut short is done again.
.DELETE_ON_ERROR:
.PHONY: help tune test browser lint compare surfaces paper prior docs clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile

tune: $(VENV)/installed  ## Install if need be, then search: the bundled demo, or ARGS="--app module:app ..."
	@$(BIN)/python -m morphling_ray.tune $(ARGS)

test: $(VENV)/installed-dev  ## Run the tests; ARGS="tests/test_space.py" for some of them
	@$(BIN)/python -m pytest $(ARGS)

browser:  ## Install Debian's Chromium for the tests of the report (as root); without one they are skipped
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >&2

lint: $(VENV)/installed-dev  ## Check style and types
	@$(BIN)/python -m ruff check $(SOURCES) examples
	@$(BIN)/python -m ruff format --check $(SOURCES) examples
	@$(BIN)/python -m mypy --strict $(SOURCES)

compare: $(VENV)/installed-dev  ## Compare searchers on recorded surfaces; ARGS="--surfaces DIR --objective NAME ..."
	@$(BIN)/python experiments/compare.py $(ARGS)

surfaces: $(VENV)/installed  ## Record the surfaces that come with the project again (some hours on a quiet machine)
	@$(BIN)/python -m experiments.record_surfaces

paper: $(VENV)/installed-dev  ## The Morphling paper's figures, ours beside theirs; ARGS="6b --searchers maml,random" for a part
	@$(BIN)/python -m experiments.paper $(ARGS)

prior: $(VENV)/installed  ## Train the bundled prior again, on the surfaces recorded on CPUs and on a GPU
	@OMP_NUM_THREADS=1 $(BIN)/python -m morphling_ray.train --surfaces experiments/surfaces/zoo --surfaces experiments/surfaces/h100 --out morphling_ray/data/prior.npz

docs: $(VENV)/installed-dev  ## Write those parts of docs/ again that follow from the code
	@$(BIN)/python -m docs.generate

clean:  ## Remove the environment and all caches; run directories stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=..." if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes some minutes" >&2
	@$(PIP) -c constraints.txt -e . >&2
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) -c constraints.txt -e '.[dev]' >&2
	@touch $@
