# prov4ml agent. `make` alone shows this help.

SHELL    := /bin/bash
GO       ?= go
PREFIX   ?= /usr/local
DESTDIR  ?=
TOOL     := $(GO) tool -modfile=tools/go.mod
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X main.version=$(VERSION)
VENV     := .venv
# make run: a Python that imports torch; empty = found or made (see examples/find-python).
PYTHON   ?=
# Kernels of kernels/list; empty = all.
KERNELS  ?=
# The example's arguments: make run ARGS="--epochs 5".
ARGS     ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@echo "prov4ml agent: what each training step did to memory, disk and CPU"; echo
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  PYTHON=   Python that imports torch (default: .venv, else python3, else a new .venv with torch from PyPI)"

.PHONY: build
build: ## Build bin/prov4ml-agent; needs Go alone
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/prov4ml-agent ./cmd/agent

.PHONY: run
run: build ## Train the example under the agent: live line, summary, files
	@python=$$(PYTHON='$(PYTHON)' VENV='$(VENV)' examples/find-python) && set -x && \
	bin/prov4ml-agent run -- "$$python" examples/train.py $(ARGS)

.PHONY: python-test
python-test: ## Make .venv with what the tests need
	@$(VENV)/bin/python -c 'import torch, torchvision, sklearn, transformers, peft, jax, pytest, psutil; import importlib.metadata as m; m.version("keras")' 2>/dev/null && command -v $(VENV)/bin/ruff >/dev/null || { \
	  echo "installing the Python packages of the tests into $(VENV)"; \
	  { [ -x $(VENV)/bin/python ] || python3 -m venv $(VENV); } && \
	  $(VENV)/bin/pip install -q --disable-pip-version-check -r examples/requirements.txt -r client/python/requirements-test.txt; }

.PHONY: test
test: build python-test ## Run all tests; as root they include eBPF on this kernel
	PYTHON=$(CURDIR)/$(VENV)/bin/python .ci/go-test ./...
	PYTHON=$(CURDIR)/$(VENV)/bin/python .ci/pytest tests

.PHONY: test-kernels
test-kernels: ## Run the eBPF tests on 5.10, 6.1, 6.12 and 7.x, emulated (KERNELS=, TESTS=, JOBS=)
	kernels/run $(KERNELS)

.PHONY: test-long
test-long: ## Run at full length what test runs short: leaks, restarts in a writer (EVENTS=, SECONDS=)
	PROV4ML_TEST_EVENTS=$(or $(EVENTS),1000000) PROV4ML_TEST_WRITER_SECONDS=$(or $(SECONDS),60) \
	$(GO) test -count=1 -v -timeout 90m -run '^(TestNothingLeaks|TestServeKilledDuringAWriter)$$' ./e2e

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME inputs (default 50000x)
	.ci/fuzz $(or $(FUZZTIME),50000x)

.PHONY: bench
bench: build python-test ## Measure what a call costs, beside psutil, in one run
	PYTHON=$(CURDIR)/$(VENV)/bin/python bench/run.sh

.PHONY: bench-bpf
bench-bpf: build python-test ## Measure what the kernel programs and the agent cost; needs root and fio (ROUNDS=)
	PYTHON=$(CURDIR)/$(VENV)/bin/python $(GO) run ./bench/bpfcost --rounds $(or $(ROUNDS),5) --document "$${DOCUMENT-docs/benchmark.md}"

# Other counters, in a folder of their own that a run puts on its path.
COUNTERS := $(VENV)-counters
counters = $(VENV)/bin/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(COUNTERS) -r bench/requirements-compare.txt

.PHONY: bench-flops
bench-flops: build python-test ## Measure what the FLOPs of every step cost, beside fvcore and FlopCounterMode
	@[ -d $(COUNTERS) ] || $(counters)
	PYTHON=$(CURDIR)/$(VENV)/bin/python COUNTERS=$(CURDIR)/$(COUNTERS) bench/flops.sh

.PHONY: compare-flops
compare-flops: build python-test ## Count the same models with other counters from PyPI; table in docs/flops.md
	@[ -d $(COUNTERS) ] || $(counters)
	PYTHON=$(CURDIR)/$(VENV)/bin/python COUNTERS=$(CURDIR)/$(COUNTERS) bench/flops_compare.sh

# A Python environment of its own with what a file of requirements names: $(call venv,DIRECTORY,FILE).
venv = [ -x $(1)/bin/python ] || python3 -m venv $(1); $(1)/bin/pip install -q --disable-pip-version-check $(3) -r $(2)

# The models of known FLOPs under another torch, in the client's tests and through the agent: $(call flops-rows,VENV,GROUPS,TESTS).
flops-rows = @$(1)/bin/python -c 'import torch, torchvision; print("torch", torch.__version__, "torchvision", torchvision.__version__)' && \
	(cd client/python && OMP_NUM_THREADS=1 $(CURDIR)/$(1)/bin/python -m pytest -q -p no:cacheprovider $(3)) && \
	FLOPS_ROWS=$(2) PYTHON=$(CURDIR)/$(1)/bin/python $(GO) test -count=1 -v -run 'FlopsAreExact' ./e2e

.PHONY: test-torch
test-torch: build ## FLOPs tests on torch 2.1, torchvision models and layers through the agent, in a venv of its own
	$(call venv,$(VENV)-torch-2.1,client/python/requirements-torch-2.1.txt)
	$(call flops-rows,$(VENV)-torch-2.1,torchvision$(comma)layer,tests/flops)

.PHONY: test-torch-newest
test-torch-newest: build ## All FLOPs tests on the newest torch, torchvision and transformers
	$(call venv,$(VENV)-torch-newest,client/python/requirements-torch-newest.txt,--upgrade)
	$(call flops-rows,$(VENV)-torch-newest,,tests/flops)

comma := ,

.PHONY: lint
lint: python-test ## Formatting and static checks: Go, C, Python
	@out=$$($(TOOL) gofumpt -l $$(git ls-files '*.go' | grep -v -e '\.pb\.go$$' -e 'connect\.go$$' -e '_bpfel\.go$$')); [ -z "$$out" ] || { echo "not gofumpt-formatted (make format): $$out"; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) buf lint
	clang-format-19 --dry-run -Werror $$(git ls-files 'bpf/*.c' 'bpf/*.h' | grep -v bpf/headers)
	$(VENV)/bin/ruff check client examples bench
	$(VENV)/bin/ruff format --check client examples bench
	cd client/python && $(CURDIR)/$(VENV)/bin/mypy

.PHONY: format
format: python-test ## Format Go, C and Python
	$(TOOL) gofumpt -l -w $$(git ls-files '*.go' | grep -v -e '\.pb\.go$$' -e 'connect\.go$$' -e '_bpfel\.go$$')
	clang-format-19 -i $$(git ls-files 'bpf/*.c' 'bpf/*.h' | grep -v bpf/headers)
	$(VENV)/bin/ruff format client examples bench
	$(VENV)/bin/ruff check --fix client examples bench

.PHONY: generate
generate: ## Generate from protobuf, the name table and the BPF C files (needs clang-19, llvm-19)
	$(TOOL) buf generate
	$(TOOL) buf generate record --template record/buf.gen.yaml
	$(TOOL) buf generate runs/state --template runs/state/buf.gen.yaml
	$(GO) generate ./bpf ./otel/...

.PHONY: verify-generated
verify-generated: ## Prove that what is committed is what generate makes
	.ci/verify-generated

.PHONY: install
install: build ## Install the binary under PREFIX (default /usr/local)
	install -D -m 0755 bin/prov4ml-agent $(DESTDIR)$(PREFIX)/bin/prov4ml-agent

.PHONY: clean
clean: ## Remove what build made
	rm -rf bin
