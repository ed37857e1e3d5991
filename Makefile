PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help venv check test test-long demo bench scale lock clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

venv: $(INSTALLED) ## install everything, pinned, into .venv; PYTHON=python3.12 picks another Python

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo '$(PYTHON) is not Python 3.11, 3.12 or 3.13; name one, as in: make venv PYTHON=python3.12'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -U 'pip>=25.1'
	$(BIN)/python -m pip install -c constraints.txt -e '.[all]' --group dev
	@touch $@

check: $(INSTALLED) ## lint, formatting, types, the direction of imports, and the files of cluster/
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --durations=0 --durations-min=5 tests/unit/test_cluster_files.py

test: $(INSTALLED) ## every test but the long ones, in two processes
	$(BIN)/python -m pytest -m 'not long' -n 2

test-long: $(INSTALLED) ## the tests that take minutes; they print their figures
	$(BIN)/python -m pytest -m long -s

demo: $(INSTALLED) ## encode real photographs through a local S3 server
	$(BIN)/python -m inpaint_encode.demo

bench: $(INSTALLED) ## measure the job and its peers on this machine, half an hour; the record goes to jobs/benchmarks/records
	$(BIN)/python -m jobs.benchmarks

scale: $(INSTALLED) ## measure how the job grows with pairs and workers
	$(BIN)/python -m jobs.benchmarks --scale

lock: $(INSTALLED) ## write requirements-hashed*.txt for the image, after a change of constraints.txt; needs uv
	$(BIN)/python cluster/lock.py

clean: ## remove caches, builds and the demo's files; .venv stays
	rm -rf .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find inpaint_encode jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
