# make golf   the whole pipeline on the embedded corpus: about four minutes on two cores
# make test   the test suite; make check also lints and type-checks
# make docs   the documentation, into docs/_build/html
# Both create .venv and install everything on first use. Needs python3 (3.11+), git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: golf test check docs install clean

golf: install
	$(BIN)/tokgolf golf

test: install
	$(BIN)/pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html

install: $(VENV)/installed

# The stamp is newer than what it was installed from, or the install is made again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
