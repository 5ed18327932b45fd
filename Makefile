# `make` alone lists the targets. Everything runs in .venv, which is made on demand with the Python named here.
PYTHON      ?= python3
VENV        := .venv
BIN         := $(VENV)/bin
STAMP       := $(VENV)/.installed
PIP         := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
PACKAGES    := compiler passes runtime targets
MODEL       := artifacts/models/fairytale-10m
DEMO        := artifacts/fairytale-10m-demo
PROMPT      ?= Once upon a time
# A process a core, which takes whole files, in the order of tests/selection.py: what a file's tests share is made once.
# Threads of BLAS beside them would wait for each other, spinning.
PYTEST      := OPENBLAS_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
TEST_ARGS   ?=
# Lavapipe, where it is installed, and the compilers that pip brings.
VULKAN      := PATH="$(abspath $(BIN)):$$PATH" VK_ICD_FILENAMES="$$(ls /usr/share/vulkan/icd.d/lvp_icd.*.json 2>/dev/null)"
VULKAN_DEBS := mesa-vulkan-drivers libvulkan1 glslc glslang-tools spirv-tools
BROWSER_DEBS := chromium chromium-driver
APT_INSTALL := apt-get install -y --no-install-recommends
# What the conformance tests compare with; far too large to be part of the development install.
REFERENCES  := torch==2.13.0 transformers==5.23.0

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all arm-root test-arm vulkan-driver test-vulkan browser barriers lint types conformance bench clean
.SUFFIXES:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv and install dsv3c with its development tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("dsv3c needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing dsv3c and its dependencies into $(VENV)"
	@$(PIP) install --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## compile the bundled model for this CPU and tell a story
	$(BIN)/dsv3c compile $(MODEL) -o $(DEMO) --overwrite
	$(BIN)/dsv3c generate $(DEMO) -p "$(PROMPT)" --max-new-tokens 200

test: $(STAMP)  ## run the test suite in minutes (TEST_ARGS="-k name" for a part)
	$(PYTEST) $(TEST_ARGS)

test-all: $(STAMP)  ## and the whole matrix of sizes, formats and levels
	$(VULKAN) $(PYTEST) --all $(TEST_ARGS)

arm-root: $(STAMP)  ## install qemu and an arm64 Python for test-arm (Debian)
	@$(PIP) install --editable '.[dev,arm]'
	$(BIN)/python -m tests.targets.arm.make_root build/arm-root

test-arm: arm-root  ## run ARM kernels and the bundled model under qemu
	$(PYTEST) --all tests/targets/arm $(TEST_ARGS)

vulkan-driver: $(STAMP)  ## install what test-vulkan needs (Debian, as root; fetches only what is missing)
	@dpkg --status $(VULKAN_DEBS) >/dev/null 2>&1 || $(APT_INSTALL) $(VULKAN_DEBS) || { apt-get update && $(APT_INSTALL) $(VULKAN_DEBS); }
	@$(PIP) install --editable '.[dev,vulkan,glslang]'

test-vulkan: vulkan-driver  ## run GPU kernels and the bundled model on Mesa's lavapipe
	$(VULKAN) $(PYTEST) --all tests/targets/vulkan tests/runtime/devices/vulkan $(TEST_ARGS)

browser: $(STAMP)  ## install what tests of the server's page need (Debian, as root; fetches only what is missing)
	@dpkg --status $(BROWSER_DEBS) >/dev/null 2>&1 || $(APT_INSTALL) $(BROWSER_DEBS) || { apt-get update && $(APT_INSTALL) $(BROWSER_DEBS); }

barriers: $(STAMP)  ## leave out every barrier of the GPU kernels in turn: each must be missed
	$(BIN)/python -m tests.targets.metal.test_barriers

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .

types: $(STAMP)  ## mypy --strict
	@mkdir -p build/ns/dsv3c
	@ln -sfn $(abspath $(PACKAGES)) build/ns/dsv3c/
	$(BIN)/mypy

conformance: $(STAMP)  ## compare with transformers (installs torch, a large download)
	@echo "installing $(REFERENCES) into $(VENV)"
	@$(PIP) install $(REFERENCES)
	$(PYTEST) tests/conformance $(TEST_ARGS)

bench: $(STAMP)  ## measure speed on this machine
	@set -e; for name in $(basename $(notdir $(wildcard tests/bench/bench_*.py))); do echo "$$name"; $(BIN)/python -m tests.bench.$$name; done

clean:  ## remove what was built, but neither .venv nor artifacts
	rm -rf build runtime/build *.egg-info runtime/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
