# Every target but `gpu` and `bench` works in its own virtual environment, .venv, which it makes when needed.
# A stamp named after pyproject.toml's checksum says what is installed there, so a second run starts at once.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --no-compile --editable
HERE := $(shell pwd | cksum | cut -d' ' -f1)
HASH := $(HERE)-$(shell cksum < pyproject.toml | cut -d' ' -f1)
MADE := $(VENV)/.made-$(HERE)
stamp = $(VENV)/.installed-$(1)-$(HASH)

# The Python at hand, for machines where the GPU's libraries are installed already.
GPU_PYTHON ?= python3
PYTEST_ARGS ?=
OPERATIONS ?= 1000000

.PHONY: help demo test kernels array-api fuzz check gpu bench clean
.DELETE_ON_ERROR:
.NOTPARALLEL: # two installs into one environment would disturb each other

help: ## say what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 16

demo: $(call stamp,demo) ## train a network on real handwritten digits, on the GPU if there is one
	$(VENV)/bin/flame-numba train digits

# a process a core already: threads of BLAS would only get in their way
test: $(call stamp,test) ## every test that needs no GPU, on all cores
	OPENBLAS_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

kernels: $(call stamp,test) ## compile every kernel for the H200, which need not be there, and look at the machine code
	$(PY) -m pytest -n auto --dist worksteal -m "sm90 and not slow" tests/test_sm90.py

# it hides the GPUs: the suite tests on the default device, element by element
array-api: $(call stamp,test) ## the array API standard's own tests: ARRAY_API_TESTS=<checkout of data-apis/array-api-tests>
	@test -f "$(ARRAY_API_TESTS)/array_api_tests/__init__.py" || { echo "array-api: name a checkout of data-apis/array-api-tests" \
	    "(2026.02.26, with its submodule): make array-api ARRAY_API_TESTS=<path>" >&2; exit 1; }
	@$(PY) -m pip --disable-pip-version-check install --quiet -r "$(ARRAY_API_TESTS)/requirements.txt"
	cd "$(ARRAY_API_TESTS)" && CUDA_VISIBLE_DEVICES= OPENBLAS_NUM_THREADS=1 ARRAY_API_TESTS_MODULE=flame_numba.array_api \
	    ARRAY_API_TESTS_SKIP_DTYPES=complex64,complex128 $(abspath $(PY)) -m pytest -q -n auto --dist worksteal \
	    -p no:cacheprovider --disable-deadline --rootdir . --skips-file=$(abspath tests/array_api/exceptions.txt) $(PYTEST_ARGS) array_api_tests

fuzz: $(call stamp,test) ## random operations on the memory pool, two million; OPERATIONS=10000000 for a night
	$(PY) tests/pool_fuzz.py $(OPERATIONS)
	$(PY) tests/pool_fuzz.py $(OPERATIONS) --threads 3 --backend segments

check: $(call stamp,dev) ## format, lint, types, layers, no circle of imports
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) scripts/circles.py

gpu: ## the whole on a GPU, with the Python at hand; installs nothing
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) scripts/gpu_check.py

bench: ## against PyTorch and CuPy on a GPU, with the Python at hand; installs nothing
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) benchmarks/run.py

clean: ## remove the environment and everything made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment cannot be moved: another folder means another one.
$(MADE):
	@python=$${PYTHON:-$$(for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	    if $$name -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; \
	    then echo $$name; break; fi; done)}; \
	if [ -z "$$python" ]; then \
	    echo "flame_numba needs Python 3.11 to 3.14 with its venv module, and found none on PATH." \
	        "Install it (Debian, Ubuntu: apt install python3-venv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "making $(VENV) with $$($$python --version)"; \
	$$python -m venv --clear $(VENV)
	@touch $@

# With a GPU, the demo also needs the CUDA compiler as wheels, of the driver's major version.
$(call stamp,demo): $(MADE)
	@cuda=$$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p'); \
	case "$$cuda" in '') extras=demo ;; 12) extras=demo,cu12 ;; *) extras=demo,cu13 ;; esac; \
	echo "installing flame-numba[$$extras] into $(VENV)"; \
	$(PIP) ".[$$extras]"
	@touch $@

$(VENV)/.installed-%-$(HASH): $(MADE)
	@echo "installing flame-numba[$*] into $(VENV) (the first time takes a minute or two)"
	@$(PIP) ".[$*]"
	@touch $@
