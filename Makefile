# `make help` lists what there is. Everything that is made lands in target/ and fuzz/target/, but bench/RESULTS.md.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# Where the guests for the tests are; several worktrees may share one directory.
export QVM_GUESTS ?= $(CURDIR)/target/guests
# Tests that boot guests: how many at once.
TEST_THREADS ?= 2
# Seconds for each fuzz target.
FUZZ_SECONDS ?= 60

CARGO := cargo

.PHONY: build
build: ## the release binary, target/release/qvm
	$(CARGO) build --release --locked

.PHONY: setup
setup: ## installs what the tests need, if anything is missing (Debian, Ubuntu)
	tests/setup

.PHONY: guests
guests: setup ## the small guests for the tests, and the oldest QEMU
	tests/guest/build "$(QVM_GUESTS)" boot tiny qemu-7.2

.PHONY: debian
debian: setup ## the Debian cloud image that `make demo` and the cloud-init test boot
	tests/guest/build "$(QVM_GUESTS)" debian

.PHONY: test
test: guests debian ## all tests, on real QEMU and real guests
	$(CARGO) test --workspace --locked -- --test-threads=$(TEST_THREADS)

.PHONY: demo
demo: debian build ## a real VM on a bridge, from its file to a clean stop
	tests/demo

.PHONY: bench
bench: guests debian ## qvm beside raw QEMU, and libvirt where it is installed; writes bench/RESULTS.md
	$(CARGO) bench --locked --bench figures

.PHONY: lint
lint: ## formatting, clippy, shell scripts, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	if command -v shellcheck >/dev/null; then grep -rlE '^#!.*\b(ba)?sh' tests .ci fuzz/run | xargs shellcheck; fi
	if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; fi

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZ_SECONDS
	fuzz/run $(FUZZ_SECONDS)

.PHONY: clean-guests
clean-guests: ## throws the built guests away
	rm -rf "$(QVM_GUESTS)"

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16
