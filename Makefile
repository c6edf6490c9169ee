.PHONY: install test test-all lint types bench
PYTHON ?= python

install:  ## this package and the tools for working on it
	$(PYTHON) -m pip install -e '.[dev]'
	pre-commit install

test:  ## all but those marked slow
	$(PYTHON) -m pytest

test-all:  ## with those
	$(PYTHON) -m pytest -m 'slow or not slow'

lint:  ## and format
	ruff check --fix .
	ruff format .

types:
	pyright

bench:  ## needs the peers: see experiments/benchmarks/throughput.py
	$(PYTHON) experiments/benchmarks/throughput.py
