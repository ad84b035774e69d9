# Every target sets up .venv by itself and is instant when nothing changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# One thread per test worker; -n follows the cores.
TEST_WORKERS ?= 2
# Writing no bytecode makes every `import torch` and `import timm` several times slower.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test fuzz coverage check format build bench docs constraints clean
.DEFAULT_GOAL := install

install: $(STAMP)

# `uv` installs in seconds what `pip` takes minutes for; where it is absent it comes into the environment through pip.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hardpatch needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || { command -v uv >/dev/null && uv venv -q --python $(PYTHON) $(VENV); } || $(PYTHON) -m venv $(VENV)
	command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install -q uv
	PATH="$$PATH:$(BIN)" VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip install --compile-bytecode -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# An interrupted demo goes on where it stopped, a finished one is measured again.
demo: $(STAMP)
	$(BIN)/hardpatch pretrain --recipe demo --out runs/demo $(if $(wildcard runs/demo/config.yaml),--resume)
	$(BIN)/hardpatch knn runs/demo --train demo:train --val demo:test --random_baseline
	$(BIN)/hardpatch score runs/demo demo:test --out runs/demo/pictures/score

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --durations 40 --durations-min 5

# Rotten files for minutes instead of seconds, `make fuzz FUZZ=100000`; the statistics tell how many were tried and how fast.
FUZZ ?= 5000
fuzz: $(STAMP)
	HARDPATCH_FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -k fuzz --hypothesis-show-statistics -rP tests/data tests/detect tests/train tests/test_weights.py

# The lines of src that the tests run, those of subprocesses too; the floor is in pyproject.toml.
coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --cov --cov-report term:skip-covered

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A source archive and a wheel in dist/; the wheel must work in an environment of its own.
build: $(STAMP)
	rm -rf dist
	PATH="$$PATH:$(CURDIR)/$(BIN)" $(BIN)/python -m build --installer uv
	PATH="$$PATH:$(CURDIR)/$(BIN)" .ci/smoke $(BIN)/python

# One step beside other libraries' on this machine, `make bench BENCH="--size base ..."`; see benchmarks/README.md.
bench: $(VENV)/.bench
	$(BIN)/hardpatch bench $(BENCH)

$(VENV)/.bench: $(STAMP)
	PATH="$$PATH:$(BIN)" VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip install -q -c constraints.txt -e '.[bench]'
	touch $@

# The pages as a site: open site/index.html, no network needed. A broken link fails.
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs site

# After a change of dependencies in pyproject.toml.
constraints: $(STAMP)
	PATH="$$PATH:$(BIN)" uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --all-extras pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
