PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread per worker: the tests' tensors are small, and more threads than cores only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help install quickstart test test-all test-detectron2 checkout fuzz lint

help:  ## show the targets
	@grep -E '^[a-z0-9-]+: .*##|^[a-z0-9-]+:  ##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 18

install: $(STAMP)  ## make .venv and install sam_d2 in it, editable, with all that tests and lint need

quickstart: $(STAMP)  ## train a small SAM on generated scenes, with boxes and with points, and show the result
	$(BIN)/python tools/quickstart.py

test: $(STAMP)  ## run the tests, without the slow ones
	$(PYTEST) -m "not slow"

test-all: $(STAMP)  ## run all tests
	$(PYTEST)

test-detectron2: checkout $(STAMP)  ## run the tests on Detectron2 itself and compare the core with it: DETECTRON2=PATH of a checkout
	path="$$(cd "$(DETECTRON2)" && pwd)" && \
	  PYTHONPATH="$$path" SAM_D2_DETECTRON2_PATH="$$path" SAM_D2_DETECTRON2=installed $(PYTEST) -m "not slow"

checkout:
	@test -n "$(DETECTRON2)" || \
	  { echo "Which Detectron2? make test-detectron2 DETECTRON2=PATH, the folder that git clone made of it." >&2; exit 2; }
	@test -f "$(DETECTRON2)/detectron2/__init__.py" || \
	  { echo "DETECTRON2=$(DETECTRON2) is no checkout of Detectron2: it has no detectron2/__init__.py." >&2; exit 2; }

fuzz: $(STAMP)  ## feed 100,000 mutated files to the readers: half an hour on one core
	OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz.py --inputs 100000

lint: $(STAMP)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sam_d2

$(STAMP): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed, $(PYTHON) is older: make PYTHON=python3.11 ..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing sam_d2 and what it needs in $(VENV): once, some minutes, 6 GB where torch comes with CUDA."
	$(BIN)/python -m pip install --editable '.[dev,parity,lora]'
	touch $@
