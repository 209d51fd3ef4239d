PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# tiny models run fastest with one thread per process
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart reports test test-slow test-server lint types docs audit bench chaos clean

quickstart: .venv/.installed  ## install into .venv if need be, run the main job, end with the path of report.html
	$(BIN)/assay quickstart

REPORTS := runs/reports

reports: .venv/.installed  ## docs/reports: the page of a real quickstart and that of a sweep, made anew; ten minutes
	$(BIN)/assay quickstart --out $(REPORTS)/quickstart
	$(BIN)/assay sweep quickstart --axes distillation.num_prompts=300,1200 --seeds 1 2 3 --runs $(REPORTS)/sweeps
	mkdir -p docs/reports
	cp $(REPORTS)/quickstart/report.html docs/reports/quickstart.html
	cp $(REPORTS)/sweeps/quickstart/report.html docs/reports/sweep.html

test: .venv/.installed-dev  ## the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: .venv/.installed-dev  ## what the test suite leaves out because it takes long
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'slow and not server'

test-server: .venv/.installed-dev  ## a served teacher against a real vLLM server: 2.5 GB in the user's cache, once
	$(BIN)/python -m pytest -m server

lint: .venv/.installed-dev  ## style and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: .venv/.installed-dev  ## type checks (pyright fetches its engine when it first runs)
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: hooks check-hooks wheel release-notes help

hooks: .venv/.installed-dev  ## check style, types, spelling, sizes and pins before every commit
	$(BIN)/pre-commit install

check-hooks: .venv/.installed-dev  ## what the hooks say of all files
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

TRY := $(BIN)/python

wheel: .venv/.installed-dev  ## build dist/, then try the wheel in a clean environment; TRY=python3.10 for another Python
	rm -f dist/*.whl dist/*.tar.gz
	$(BIN)/python -m build --no-isolation
	$(TRY) tools/try_wheel.py dist/*.whl constraints.txt

release-notes:  ## whether TAG=v1.2.3 may be released; its section of the changelog goes to dist/NOTES.md
	mkdir -p dist
	$(PYTHON) tools/check_release.py "$(TAG)" > dist/NOTES.md

.PHONY: public-surface

public-surface: .venv/.installed-dev  ## write the signatures of all public names to tests/public_surface.txt anew
	$(BIN)/python tools/public_surface.py

docs: .venv/.installed-docs  ## the documentation site in site/, without a network; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean
	@echo $(CURDIR)/site/index.html

audit: .venv-audit/.installed  ## known vulnerabilities of the pinned versions; says so when nobody could be asked
	$(PYTHON) tools/audit.py .venv-audit/bin/pip-audit constraints.txt

SPEED := offline on_policy sampling loss_memory machine probe_share growth losses

bench: .venv/.installed-dev  ## speed on this machine, as ratios; BENCH=--write keeps the records, BENCH=--quick is for a look
	@set -e; for name in $(SPEED); do $(BIN)/python benchmarks/speed/$$name.py $(BENCH); done
	@if [ "$(BENCH)" = --write ]; then $(BIN)/python benchmarks/speed/table.py; fi

chaos: .venv/.installed-dev  ## kill runs at more than 50 random moments and compare what they end in; about a quarter of an hour
	$(BIN)/python tests/chaos.py --write

.venv/.installed: pyproject.toml constraints.txt
	@echo "installing into .venv: a minute or two; torch alone is 200 MB"
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP_INSTALL) -e '.[dev]'
	touch $@

.venv/.installed-docs: .venv/.installed
	$(PIP_INSTALL) -e '.[docs]'
	touch $@

.venv-audit/.installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	touch $@

help:  ## this list
	@awk -F ':.*## +' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' Makefile

clean:
	rm -rf .venv .venv-audit runs dist site
