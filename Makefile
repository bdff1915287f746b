# Every target makes .venv when it is missing, and installs again when pyproject.toml or constraints.txt change.
#   make demo                     the whole loop, offline, on two cores
#   make test PYTHON3=python3.12  another interpreter for a new .venv
PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# The models here are tiny: more threads than this make them slower, not faster.
export OMP_NUM_THREADS ?= 2

.PHONY: demo test test-slow style quality bench tiny-checkpoints clean
.DEFAULT_GOAL := demo

demo: $(INSTALLED)
	$(VENV)/bin/sharegpt4o-image demo

# Two files at a time, each with one thread: a model of this size gains nothing from a second one.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses 2 --dist loadfile

test-slow: $(INSTALLED)
	$(PYTHON) -m pytest -m "slow and not gpu"

style: $(INSTALLED)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

quality: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: $(INSTALLED)
	set -e; for script in $(filter-out benchmarks/recipes.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(PYTHON) $$script; done

tiny-checkpoints: $(INSTALLED)
	$(PYTHON) -m sharegpt4o_image.training.tiny_checkpoints --work-dir runs/tiny
	$(PYTHON) -m sharegpt4o_image.tiny_release --work-dir runs/tiny

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find builders sharegpt4o_image tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and alone: the machine's own index or wheels decide between its CPU and CUDA build.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Error: $(PYTHON3) is older than Python 3.11; name a newer one: make PYTHON3=python3.12" >&2; exit 2; }
	$(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --constraint constraints.txt torch
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
