# make demo   trains, evaluates and draws handwritten digits      make test      lints and runs the tests
# make sweep-demo  d, r and K on the digits, three seeds each            make test-all  the slow tests too
# make segment-demo   the same for segmentation       make segment-heads  its heads, three seeds each
# make clean  removes .venv and what the demo made

SHELL := /bin/bash
.DELETE_ON_ERROR:

# The first Python that runs and is one TensorFlow has wheels for.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
# Which TensorFlow: 2.20 (the newest that TPUs have a wheel of) or 2.21, each with its environment.
TENSORFLOW ?= 2.20
VENV := .venv$(if $(filter-out 2.20,$(TENSORFLOW)),-$(TENSORFLOW))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet "tensorflow==$(TENSORFLOW).*" "tf-keras==$(TENSORFLOW).*"
DATA_DIR ?= data
MODEL_DIR ?= runs/digits
# More flags for the demo's training, e.g. TRAIN_FLAGS="--gin_param=loop.Schedule.num_steps=100"
TRAIN_FLAGS ?=
# Without TensorFlow's C++ log: on a machine without a GPU it begins with CUDA errors. What matters is raised in Python.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo sweep-demo segment-demo segment-heads test test-all test-tpu-wheel lint format clean

demo: $(VENV)/installed
	$(BIN)/python data_prep/digits.py --data_dir=$(DATA_DIR)
	$(BIN)/python data_prep/digits_features.py --data_dir=$(DATA_DIR)
	$(BIN)/python scripts/train.py --gin_file=configs/digits.gin --model_dir=$(MODEL_DIR) --data_dir=$(DATA_DIR) $(TRAIN_FLAGS)
	$(BIN)/python scripts/sample.py --model_dir=$(MODEL_DIR) --per_class=100 --output=$(MODEL_DIR)/samples.npz
	$(BIN)/python data_prep/digits_recognition.py --model_dir=$(MODEL_DIR) --data_dir=$(DATA_DIR)

sweep-demo: $(VENV)/installed-sweep
	$(BIN)/python data_prep/digits.py --data_dir=$(DATA_DIR)
	$(BIN)/python data_prep/digits_features.py --data_dir=$(DATA_DIR)
	$(BIN)/python scripts/sweep.py --sweep=configs/sweeps/digits.gin --data_dir=$(DATA_DIR) \
		--output_dir=runs/sweep_demo --workers=2

segment-demo: $(VENV)/installed
	$(BIN)/python data_prep/segment_digits.py --data_dir=$(DATA_DIR)
	$(BIN)/python scripts/segment.py train --gin_file=configs/segmentation/digits.gin --model_dir=runs/segment_digits --data_dir=$(DATA_DIR)
	$(BIN)/python scripts/segment.py evaluate --model_dir=runs/segment_digits --data_dir=$(DATA_DIR)

# 42 trainings, two at a time; docs/segmentation.md says how some of them are chosen.
segment-heads: $(VENV)/installed-sweep
	$(BIN)/python data_prep/segment_digits.py --data_dir=$(DATA_DIR)
	$(BIN)/python scripts/sweep.py --sweep=configs/sweeps/digits_heads.gin --data_dir=$(DATA_DIR) \
		--output_dir=runs/segment_heads --workers=2

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The default tests with TensorFlow's TPU wheel, on a machine without a TPU; about 2 GB.
test-tpu-wheel: .venv-tpu/installed
	TPU_SKIP_MDS_QUERY=1 .venv-tpu/bin/python scripts/check_environment.py --tpu
	TPU_SKIP_MDS_QUERY=1 .venv-tpu/bin/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.10, 3.11 or 3.12 is needed (TensorFlow has no wheels for others); found: $$(python3 --version 2>&1)." >&2; \
		echo "Install one, e.g. apt install python3.11 python3.11-venv, and run: make PYTHON=python3.11 ..." >&2; exit 1; fi
	@# Debian and Ubuntu ship Python without the part of venv that brings pip.
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "$(PYTHON) has no ensurepip: installing $$package"; apt-get update -qq && apt-get install -y -qq $$package; \
		else \
			echo "$(PYTHON) has no ensurepip. Install it and run make again: sudo apt-get install $$package" >&2; exit 1; fi; fi
	$(PYTHON) -m venv $(VENV)

.venv-tpu/installed: setup.py $(wildcard requirements-tpu-*.lock)
	$(PYTHON) -m venv --upgrade-deps .venv-tpu
	version=$$(.venv-tpu/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	.venv-tpu/bin/pip install --quiet --no-deps -r requirements-tpu-$$version.lock
	.venv-tpu/bin/pip install --quiet --no-deps -e .
	@# What the tests need; none of it asks for TensorFlow.
	.venv-tpu/bin/pip install --quiet hypothesis packaging pot prdc pytest pytest-xdist optuna sqlalchemy starlette uvicorn \
		"psycopg[binary]"
	touch $@

$(VENV)/installed: setup.py | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/installed-sweep: setup.py | $(VENV)/bin/python
	$(PIP) --editable .[sweep]
	touch $@ $(VENV)/installed

$(VENV)/installed-test: setup.py | $(VENV)/bin/python
	$(PIP) --editable .[test]
	touch $@ $(VENV)/installed $(VENV)/installed-sweep

clean:
	rm -rf .venv .venv-2.21 .venv-tpu $(DATA_DIR)/digits $(DATA_DIR)/digits_features runs/digits runs/sweep_demo \
		$(DATA_DIR)/segment_digits runs/segment_digits
