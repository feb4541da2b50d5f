# make demo   the forum question, answered       make test   the whole test suite
# Either does everything with only Python, a C++ compiler and make; see CONTRIBUTING.md for the rest.

PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
CXX_FILES = $(shell find bench csrc tests/cpp -name '*.[ch]pp')
SOURCES := CMakeLists.txt pyproject.toml README.md LICENSE $(shell find csrc python -not -name '__pycache__' -not -name '*.pyc')

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN)

.PHONY: demo test test-machines experiment bench lint format types symbols recompile wheel sanitize test-emulated fuzz mutants clean

demo: $(VENV)/package
	detconv demo $(ARGS)

test: $(VENV)/package $(VENV)/pretrained
	DETCONV_PRETRAINED=$(VENV)/pretrained python -m pytest $(ARGS)

# The tests that a machine could reach, where it is another: one processor, busy ones, older kernels, a strange path.
test-machines: $(VENV)/package
	.ci/conditions.sh $(ARGS)

experiment: $(VENV)/package
	python -m pip install --quiet 'detconv[examples]'
	python examples/forum_experiment.py $(ARGS)

bench: $(VENV)/package
	python -m pip install --quiet 'detconv[bench]'
	python -m bench $(ARGS)

lint: $(VENV)/tools
	ruff check
	ruff format --check
	clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/tools
	ruff check --fix
	ruff format
	clang-format -i $(CXX_FILES)

types: $(VENV)/tools
	mypy
	python -m mypy.stubtest detconv._core

# The objects of one instruction set must not offer code to the others.
symbols: $(VENV)/package
	.ci/check_symbols.sh build/cp*

# One changed source is one source to compile: pip's isolated environments must not cost the others their objects.
recompile: $(VENV)/package
	.ci/recompile.sh

# libgomp stays outside the wheel: a second copy beside torch's would be a second OpenMP runtime in the process.
wheel: $(VENV)/tools
	rm -rf build/wheel dist
	python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	auditwheel repair --exclude libgomp.so.1 --wheel-dir dist build/wheel/*.whl

sanitize: $(VENV)/tools
	cmake -G Ninja -S . -B build/sanitize -DDETCONV_PYTHON=OFF -DDETCONV_SANITIZE=ON \
	  -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g" -DCMAKE_COMPILE_WARNING_AS_ERROR=ON
	cmake --build build/sanitize
	build/sanitize/detconv_selftest
	for file in tests/golden/*.txt; do build/sanitize/detconv_selftest --golden $$file || exit 1; done

# The golden hashes on processors that this machine is not: older x86-64 ones and aarch64, emulated.
test-emulated: $(VENV)/tools
	.ci/emulated.sh

# Random input to the passes, orders and files, for SECONDS in all; what fails says with which seed it fails again.
SECONDS ?= 120
fuzz: $(VENV)/package
	cd tests && python -m fuzz --seconds $(SECONDS) $(ARGS)

# Small mistakes in the code, one by one: those that survive the tests show where one is missing. ARGS="--count 50"
SEED ?= 0
mutants: $(VENV)/tools
	python tests/mutants.py --seed $(SEED) $(ARGS)

# torch first, by its exact version: a later requirement must not choose another build of it.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet $(TORCH)
	touch $@

$(VENV)/package: $(VENV)/torch $(SOURCES)
	python -m pip install --quiet '.[torch,plot,test]'
	@detconv info | grep '^openmp .*no:' || true  # pip shows nothing of what CMake says of it
	touch $@

# A model that someone else trained, read from its wheel; the package itself asks for an older torch.
$(VENV)/pretrained: | $(VENV)/torch
	python -m pip download --quiet --no-deps --dest $@ facenet-pytorch==2.6.0

$(VENV)/tools: pyproject.toml | $(VENV)/package
	python -m pip install --quiet 'detconv[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
