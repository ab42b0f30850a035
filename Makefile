# make run          start Galvanic (with a Postgres of its own unless DATABASE_URL is set)
# make test         all tests but the long ones, two files at a time
# make test-faults  the long ones: real processes under faults, for minutes
# make test-where   the filter language against Postgres: 100 000 generated expressions
# make bench        how fast it is, beside its limits: half an hour, and nothing else should load the machine
# make bench-clauses, make bench-plots  the same by kind of filter, and over numbers of shapes, clients and rows
# make simulate     crash simulations, ten thousand seeds each: an hour or so
# make lint         style and types

VENV := .venv
# Any Python of 3.11 or later.
PYTHON ?= python3
STAMP := $(VENV)/installed

.PHONY: install run test test-faults test-where bench bench-clauses bench-plots simulate lint

install: $(STAMP)

# The stamp makes the second run quick: it is renewed when the dependencies change.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Galvanic needs Python 3.11 or later; set PYTHON=")'
	@echo "installing into $(VENV)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# exec: signals sent to make's child reach galvanic, not a shell.
run: install
	@exec $(VENV)/bin/galvanic up

test: install
	$(VENV)/bin/python -m pytest -m "not faults and not where" -n 2 --dist loadfile

# Three at a time, since they wait for a third of their time. In the order of their names: the longest tests are in a
# file of few, which would be begun last.
test-faults: install
	$(VENV)/bin/python -m pytest -m faults -n 3 --dist loadfile --no-loadscope-reorder

test-where: install
	$(VENV)/bin/python -m pytest tests/unit/shapeworker/where -m where

bench: install
	$(VENV)/bin/python -m tests.bench
	$(VENV)/bin/python -m tests.bench.document

bench-clauses: install
	$(VENV)/bin/python -m tests.bench.by_clause

bench-plots: install
	$(VENV)/bin/python -m tests.bench.sweeps

simulate: install
	$(VENV)/bin/python -m tests.simulation.storage --seeds 10000
	$(VENV)/bin/python -m tests.simulation.pipeline --seeds 10000 --jobs 2

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
