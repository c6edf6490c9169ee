.PHONY: install test lint types bench
PYTHON ?= python

install:  ## this package and the tools for working on it
	$(PYTHON) -m pip install -e '.[dev]'
	pre-commit install

test:
	$(PYTHON) -m pytest

lint:  ## and format
	ruff check --fix .
	ruff format .

types:
	pyright

bench:  ## needs the peers: see experiments/benchmarks/throughput.py
	$(PYTHON) experiments/benchmarks/throughput.py
