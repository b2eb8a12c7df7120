# `make help` lists the targets. They only write to .venv and, for the demo, to $(DEMO_DIR).

PYTHON ?= python3
DEMO_DIR ?= demo
DEMO_MAP50 ?= 0.70

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet
DEMO_SIZES := --train 400 --val 80 --test 40 --size 256 --seed 7

# The benchmark ends its model after its budget, so both together take less than 9 minutes.
GPU_TESTS := tests/gpu tests/formats/test_tensorrt_runtime_gpu.py tests/commands/test_benchmark.py
GPU_TEST_SECONDS ?= 390
GPU_BENCH_SECONDS ?= 100
OFFICIAL ?=

# specs/demo.yaml reads and writes below demo/; these overrides replace its paths for another DEMO_DIR.
ifneq ($(DEMO_DIR),demo)
DEMO_OVERRIDES := -r "$(DEMO_DIR)/results" \
	"dataset.train_data_sources=[{image_dir: '$(DEMO_DIR)/data/train', json_file: '$(DEMO_DIR)/data/annotations/instances_train.json'}]" \
	"dataset.val_data_sources={image_dir: '$(DEMO_DIR)/data/val', json_file: '$(DEMO_DIR)/data/annotations/instances_val.json'}" \
	"dataset.test_data_sources={image_dir: '$(DEMO_DIR)/data/val', json_file: '$(DEMO_DIR)/data/annotations/instances_val.json'}" \
	"dataset.infer_data_sources={image_dir: '$(DEMO_DIR)/data/test', classmap: '$(DEMO_DIR)/data/classmap.txt'}" \
	"evaluate.checkpoint='$(DEMO_DIR)/results/train/rtdetr_model_best.pth'" \
	"inference.checkpoint='$(DEMO_DIR)/results/train/rtdetr_model_best.pth'"
endif

# litert-torch 0.10 requires torch<2.15, so its tests have an environment of their own.
TFLITE := $(VENV)/tflite
TFLITE_INDEX ?=
TFLITE_TESTS := tests/commands/test_export_tflite.py tests/formats/test_tflite_runtime.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev demo check test test-tflite test-slow lint format types site gpu-check gpu-wheels cpp-headers docs lock audit clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## create .venv and install the package
install-dev: $(INSTALLED_DEV) ## also install the packages for tests and linting

# The lock is for Python 3.11 and later; 3.10 gets the newest versions that pyproject.toml allows.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or later is required: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
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
		$(PIP) -e '.[dev]' && $(PIP) --no-deps $$(grep -E '^(nvidia-tao-core|tritonclient)==' requirements-dev.lock); \
	fi
	@touch $@

demo: $(INSTALLED) ## train, evaluate and run a small detector on generated images (less than 15 minutes on 2 CPU cores)
	$(BIN)/python scripts/make_sample_dataset.py "$(DEMO_DIR)/data" $(DEMO_SIZES)
	rm -rf "$(DEMO_DIR)/results"
	$(BIN)/rtdetr train -e specs/demo.yaml $(DEMO_OVERRIDES)
	$(BIN)/rtdetr evaluate -e specs/demo.yaml $(DEMO_OVERRIDES)
	$(BIN)/rtdetr inference -e specs/demo.yaml $(DEMO_OVERRIDES)
	@$(BIN)/python scripts/demo_summary.py "$(DEMO_DIR)/results" --require $(DEMO_MAP50)

test: $(INSTALLED_DEV) ## run the tests in two processes; ARGS="-k name" selects some
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --timeout 600 $(ARGS)

test-tflite: $(TFLITE)/.installed ## run the tests of TFLite's converter, which requires an older PyTorch, in its own environment
	$(TFLITE)/bin/python -m pytest -m "not gpu" $(TFLITE_TESTS) $(ARGS)

# The package index of PyTorch has wheels without CUDA, which are a tenth of the size.
$(TFLITE)/.installed: pyproject.toml
	test -x $(TFLITE)/bin/python || $(PYTHON) -m venv $(TFLITE)
	$(TFLITE)/bin/python -m pip --disable-pip-version-check install --quiet --quiet $(TFLITE_INDEX) 'torch<2.15' torchvision
	$(TFLITE)/bin/python -m pip --disable-pip-version-check install --quiet --quiet -e '.[tflite]' pytest pytest-timeout tifffile
	@touch $@

test-slow: $(INSTALLED_DEV) ## run the slow tests
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

gpu-check: $(INSTALLED_DEV) ## run the tests that need a CUDA device, then a benchmark (gpu_benchmark.json), in 9 minutes
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
		|| { echo "gpu-check requires a CUDA device, but this machine has none" >&2; exit 1; }
	status=0; \
	timeout --signal=INT $(GPU_TEST_SECONDS) $(BIN)/python -m pytest -m gpu $(GPU_TESTS) $(ARGS) || status=$$?; \
	$(BIN)/python scripts/bench_gpu.py --budget $(GPU_BENCH_SECONDS) --json gpu_benchmark.json \
		$(if $(OFFICIAL),--official "$(OFFICIAL)") || status=$$?; \
	exit $$status

gpu-wheels: $(INSTALLED_DEV) ## collect the wheels for gpu-check on a machine without network (ARGS="--has FILE")
	$(BIN)/python scripts/collect_gpu_wheels.py $(ARGS)

cpp-headers: $(INSTALLED) ## get onnxruntime's C++ headers from Debian, for the test of examples/cpp
	scripts/onnxruntime_headers.sh $(VENV)/include/onnxruntime

check: lint types test ## run lint, types and test, as CI does

lint: $(INSTALLED_DEV) ## check style and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED_DEV) ## format the code and apply fixes with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(INSTALLED_DEV) ## check types with mypy
	$(BIN)/mypy

site: $(INSTALLED_DEV) ## build the documentation site into site/
	$(BIN)/zensical build --clean --strict

docs: $(INSTALLED) ## generate docs/spec.md
	$(BIN)/python scripts/generate_spec_reference.py

lock: $(INSTALLED_DEV) ## write the lock files from the packages in .venv
	$(BIN)/python scripts/lock_dependencies.py

audit: ## check the packages in the lock files for known vulnerabilities (at PyPI or OSV)
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit \
		&& $(VENV)/audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit; } \
		|| { rm -rf $(VENV)/audit; echo "make audit requires a package index to install pip-audit" >&2; exit 2; }
	@$(PYTHON) scripts/audit_dependencies.py $(VENV)/audit/bin/pip-audit

clean: ## remove .venv and the files of the demo
	rm -rf $(VENV) "$(DEMO_DIR)/data" "$(DEMO_DIR)/results"
