# `make help` lists the targets. Everything happens in .venv and, for the demo, in $(DEMO_DIR).

PYTHON ?= python3
DEMO_DIR ?= demo
DEMO_MAP50 ?= 0.70

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet
DEMO_SIZES := --train 400 --val 80 --test 40 --size 256 --seed 7

# specs/demo.yaml reads and writes below demo/; another DEMO_DIR moves its paths.
ifneq ($(DEMO_DIR),demo)
DEMO_OVERRIDES := -r "$(DEMO_DIR)/results" \
	"dataset.train_data_sources=[{image_dir: '$(DEMO_DIR)/data/train', json_file: '$(DEMO_DIR)/data/annotations/instances_train.json'}]" \
	"dataset.val_data_sources={image_dir: '$(DEMO_DIR)/data/val', json_file: '$(DEMO_DIR)/data/annotations/instances_val.json'}" \
	"dataset.test_data_sources={image_dir: '$(DEMO_DIR)/data/val', json_file: '$(DEMO_DIR)/data/annotations/instances_val.json'}" \
	"dataset.infer_data_sources={image_dir: '$(DEMO_DIR)/data/test', classmap: '$(DEMO_DIR)/data/classmap.txt'}" \
	"evaluate.checkpoint='$(DEMO_DIR)/results/train/rtdetr_model_best.pth'" \
	"inference.checkpoint='$(DEMO_DIR)/results/train/rtdetr_model_best.pth'"
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev demo check test test-slow lint format types site gpu-check docs lock audit clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## make .venv and install the program
install-dev: $(INSTALLED_DEV) ## and what tests and linting need

# The lock holds for Python 3.11 and later; 3.10 takes the newest versions that pyproject.toml allows.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or later is needed: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		$(PIP) --no-deps -r requirements.lock && $(PIP) --no-deps --no-build-isolation -e .; \
	else \
		$(PIP) -e .; \
	fi
	@touch $@

$(INSTALLED_DEV): $(INSTALLED) requirements-dev.lock
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		$(PIP) --no-deps -r requirements-dev.lock; \
	else \
		$(PIP) -e '.[dev]' && $(PIP) --no-deps $$(grep '^nvidia-tao-core==' requirements-dev.lock); \
	fi
	@touch $@

demo: $(INSTALLED) ## train, evaluate and run a small detector on drawn pictures (under 15 minutes on 2 CPU cores)
	$(BIN)/python scripts/make_sample_dataset.py "$(DEMO_DIR)/data" $(DEMO_SIZES)
	rm -rf "$(DEMO_DIR)/results"
	$(BIN)/rtdetr train -e specs/demo.yaml $(DEMO_OVERRIDES)
	$(BIN)/rtdetr evaluate -e specs/demo.yaml $(DEMO_OVERRIDES)
	$(BIN)/rtdetr inference -e specs/demo.yaml $(DEMO_OVERRIDES)
	@$(BIN)/python scripts/demo_summary.py "$(DEMO_DIR)/results" --require $(DEMO_MAP50)

test: $(INSTALLED_DEV) ## the tests, in two processes; ARGS="-k name" chooses
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --timeout 600 $(ARGS)

test-slow: $(INSTALLED_DEV) ## the tests that take long
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

gpu-check: $(INSTALLED_DEV) ## the tests that need a CUDA device, then a benchmark (gpu_benchmark.json)
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
		|| { echo "gpu-check needs a CUDA device; this machine has none" >&2; exit 1; }
	$(BIN)/python -m pytest -m gpu $(ARGS)
	$(BIN)/python scripts/bench_gpu.py --json gpu_benchmark.json

check: lint types test ## what CI runs

lint: $(INSTALLED_DEV) ## ruff: lint, and check the format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED_DEV) ## ruff: format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(INSTALLED_DEV) ## mypy
	$(BIN)/mypy

site: $(INSTALLED_DEV) ## build the documentation site into site/
	$(BIN)/zensical build --clean --strict

docs: $(INSTALLED) ## write docs/spec.md anew
	$(BIN)/python scripts/generate_spec_reference.py

lock: $(INSTALLED_DEV) ## write the lock files from what .venv holds
	$(BIN)/python scripts/lock_dependencies.py

audit: ## known weaknesses of the packages in the lock files (asks PyPI or OSV)
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit \
		&& $(VENV)/audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit; } \
		|| { rm -rf $(VENV)/audit; echo "make audit needs a package index to get pip-audit from" >&2; exit 2; }
	@$(PYTHON) scripts/audit_dependencies.py $(VENV)/audit/bin/pip-audit

clean: ## remove .venv and the demo's files
	rm -rf $(VENV) "$(DEMO_DIR)/data" "$(DEMO_DIR)/results"
