# What there is: make help.  Everything is made in .venv/ and build/.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.NOTPARALLEL:

PYTHON := .venv/bin/python
FUZZ_ARGS ?= --runs 200000
CMD ?=
STEPS ?=
# by the environment, since a command may hold quotes of any kind
export NSRUN_CMD := $(value CMD)

.PHONY: help build run test native-test fs-test soak kvm-test kvm-soak guest-kernel guest-kernel-install bench
.PHONY: check fuzz clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-21s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Install nsrun and the Python package into .venv
	@scripts/setup build

run: build ## Build and test the example in a sandbox, or run CMD='...' in one
	@if [[ -n $$NSRUN_CMD ]]; then \
		.venv/bin/nsrun run --workspace . -- sh -c "$$NSRUN_CMD"; \
	else \
		$(PYTHON) examples/build_project.py; \
	fi

# not "python -m pytest", which would import ./cowork_nsrun instead of what is installed
test: ## Run all tests: native-test and kvm-test
	@scripts/setup kvm
	@$(MAKE) --no-print-directory native-test kvm-test

native-test: ## Tests on this machine's kernel
	@scripts/setup test
	@.venv/bin/pytest

fs-test: ## All tests of the file server, under address and thread sanitizers
	@scripts/setup test
	@NSRUN_FS_FULL=1 NSRUN_FS_SANITIZER=address .venv/bin/pytest tests/fs
	@NSRUN_FS_FULL=1 NSRUN_FS_SANITIZER=thread .venv/bin/pytest tests/fs

soak: ## Spawn 20000 sandboxes, or SPAWNS=n, and count what they leave
	@scripts/setup test
	@NSRUN_SOAK=$${SPAWNS:-20000} .venv/bin/pytest tests/soak

kvm-test: ## Tests on another kernel with cgroup v2 and KVM, in QEMU; STEPS="core-root" for a part
	@scripts/setup kvm
	@$(PYTHON) -m tests.kvmbed.suite $(STEPS)

kvm-soak: ## Steps of kvm-test that take long
	@scripts/setup kvm
	@$(PYTHON) -m tests.kvmbed.suite --soak $(STEPS)

# options of the next two: LINUX_SOURCE=linux-source-6.12, or a tarball's path; JOBS=2
GUEST_KERNEL = scripts/setup guest-kernel && $${PYTHON3:-python3} packaging/guest-kernel/build.py \
	--source "$${LINUX_SOURCE-}" --jobs "$${JOBS:-$$(nproc)}"

guest-kernel: ## Build a small kernel for microVMs, of the distribution's source package
	@$(GUEST_KERNEL)

guest-kernel-install: ## The same, and put it where nsrun looks for this user's kernels
	@$(GUEST_KERNEL) --install

bench: ## Compare with bwrap and others; writes docs/bench
	@scripts/setup bench
	@$(PYTHON) -m bench
	@$(PYTHON) -m bench.service

check: ## Lint, formatting, types
	@scripts/setup check
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/mypy tests/python tests/soak examples/*.py
	@.venv/bin/mypy tests/cowork
	@.venv/bin/mypy tests/vmm
	@.venv/bin/mypy tests/fs
	@.venv/bin/mypy tests/guest tests/python/leftovers.py tests/vmm/inject.py
	@.venv/bin/mypy -p tests.kvmbed
	@.venv/bin/mypy packaging/guest-kernel/build.py
	@shellcheck scripts/setup fuzz/run .ci/run tests/kvmbed/run
	@shellcheck -s dash tests/kvmbed/init tests/kvmbed/main

fuzz: ## Fuzz what reads others' bytes, FUZZ_ARGS="--time 600" for longer
	@scripts/setup fuzz
	@fuzz/run $(FUZZ_ARGS)

clean: ## Remove what was built
	@rm -rf build .venv .hypothesis .pytest_cache .mypy_cache .ruff_cache .benchmarks
	@find . -name __pycache__ -prune -exec rm -rf {} +
