# prov4ml agent. `make` alone shows this help.

SHELL    := /bin/bash
GO       ?= go
PREFIX   ?= /usr/local
DESTDIR  ?=
TOOL     := $(GO) tool -modfile=tools/go.mod
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X main.version=$(VERSION)
VENV     := .venv
# Any Python that imports torch serves; without one, make run and make test make $(VENV).
PYTHON   ?= $(shell for p in $(VENV)/bin/python python3; do $$p -c 'import torch, torchvision, sklearn' >/dev/null 2>&1 && command -v $$p && break; done)
ifeq ($(strip $(PYTHON)),)
PYTHON   := $(VENV)/bin/python
endif
# The example's arguments: make run ARGS="--epochs 5".
ARGS     ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@echo "prov4ml agent: what each training step did to memory, disk and CPU"; echo
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  PYTHON=   Python that imports torch (default: .venv if there is one, else python3, else a new .venv)"

.PHONY: build
build: ## Build bin/prov4ml-agent; needs Go alone
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/prov4ml-agent ./cmd/agent

.PHONY: run
run: build python ## Train the example under the agent: live line, summary, files
	bin/prov4ml-agent run -- $(PYTHON) examples/train.py $(ARGS)

# torch from PyPI is the CUDA build: 5.4 GB on disk. PIP_INDEX_URL or PIP_EXTRA_INDEX_URL may point at a CPU-only index.
.PHONY: python
python: ## Make .venv with what the example needs, unless PYTHON has it
	@$(PYTHON) -c 'import torch, torchvision, sklearn' 2>/dev/null || { \
	  echo "installing torch and what the example needs into $(VENV) (5.4 GB on disk, some minutes)"; \
	  python3 -m venv $(VENV) && $(VENV)/bin/pip install -q --disable-pip-version-check -r examples/requirements.txt; }

.PHONY: python-test
python-test: ## Make .venv with what the tests need
	@$(VENV)/bin/python -c 'import torch, torchvision, sklearn, transformers, peft, pytest, psutil' 2>/dev/null && command -v $(VENV)/bin/ruff >/dev/null || { \
	  echo "installing the Python packages of the tests into $(VENV)"; \
	  { [ -x $(VENV)/bin/python ] || python3 -m venv $(VENV); } && \
	  $(VENV)/bin/pip install -q --disable-pip-version-check -r examples/requirements.txt -r client/python/requirements-test.txt; }

.PHONY: test
test: build python-test ## Run all tests; as root they include eBPF on this kernel
	PYTHON=$(CURDIR)/$(VENV)/bin/python .ci/go-test ./...
	cd client/python && $(CURDIR)/$(VENV)/bin/python -m pytest -q -p no:cacheprovider tests

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (default 20s)
	.ci/fuzz $(or $(FUZZTIME),20s)

.PHONY: bench
bench: build python-test ## Measure what a call costs, beside psutil, in one run
	PYTHON=$(CURDIR)/$(VENV)/bin/python bench/run.sh

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
