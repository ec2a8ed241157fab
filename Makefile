# `make help` lists all targets. Build results are in target/ and fuzz/target/; `make bench` writes
# bench/RESULTS.md, `make docs` writes docs/reference/ and nix/keys.nix.

# Found through PATH, because the build sandbox of Nix has no /bin/bash.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# The directory of the guests for tests; several worktrees can share it.
export QVM_GUESTS ?= $(CURDIR)/target/guests
# The number of parallel test threads. Tests wait for guests more than for the CPU.
TEST_THREADS ?= 6
# Slow fault tests in addition to those of `crash`.
FAULTS ?= supervisor::host_faults net::taps start::admission supervisor::load
# Minutes for the kill points of `make test-faults`, which takes at most 15 minutes in total.
export QVM_MINUTES ?= 3
# Seconds per fuzz target.
FUZZ_SECONDS ?= 60

CARGO := cargo

# The prefix of `make install` below DESTDIR. systemd also reads units below /usr/local.
PREFIX ?= /usr
DESTDIR ?=
# The Cargo profile of the program.
PROFILE ?= release
# The program to install; it also prints the manual pages and completions.
BINARY ?= target/$(PROFILE:dev=debug)/qvm
# A program that runs BINARY if it is built for another CPU.
EMULATOR ?=
# The directory of zsh completions; Debian uses another one.
ZSH_COMPLETIONS ?= $(PREFIX)/share/zsh/site-functions
# The directory of the Debian package.
OUT ?= target/debian

.PHONY: build
build: ## Build the release binary, target/release/qvm
	$(CARGO) build --profile $(PROFILE) --locked

.PHONY: install
install: ## Install the built binary, units, completions and documents below DESTDIR
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/qvm
	for kind in system user; do \
		install -d $(DESTDIR)$(PREFIX)/lib/systemd/$$kind-generators $(DESTDIR)$(PREFIX)/lib/systemd/$$kind; \
		ln -sf ../../../bin/qvm $(DESTDIR)$(PREFIX)/lib/systemd/$$kind-generators/qvm-generator; \
	done
	for unit in qvm@.service qvm.target qvm.slice; do \
		sed 's|/usr/|$(PREFIX)/|g' systemd/$$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit; \
		sed 's|/usr/|$(PREFIX)/|g' systemd/user/$$unit >$(DESTDIR)$(PREFIX)/lib/systemd/user/$$unit; \
		chmod 644 $(DESTDIR)$(PREFIX)/lib/systemd/{system,user}/$$unit; \
	done
	for unit in qvm-network.socket qvm-network.service; do \
		sed 's|/usr/|$(PREFIX)/|g' systemd/$$unit | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit; \
	done
	install -D -m 644 systemd/sysusers.d/qvm.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/qvm.conf
	install -D -m 644 systemd/tmpfiles.d/qvm.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/qvm.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/qvm $(wildcard docs/*.varlink)
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/qvm README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE
	for dir in . reference decisions; do \
		install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/qvm/$$dir docs/$$dir/*.md; \
	done
	ln -sfn . $(DESTDIR)$(PREFIX)/share/doc/qvm/docs # for the links in README.md
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/qvm/examples $(wildcard examples/*.toml examples/*.yaml)
	$(EMULATOR) $(BINARY) man qvm | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/man/man1/qvm.1
	$(EMULATOR) $(BINARY) man qvm.toml | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/man/man5/qvm.toml.5
	$(EMULATOR) $(BINARY) completions bash | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/qvm
	$(EMULATOR) $(BINARY) completions zsh | install -D -m 644 /dev/stdin $(DESTDIR)$(ZSH_COMPLETIONS)/_qvm
	$(EMULATOR) $(BINARY) completions fish | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/qvm.fish

.PHONY: deb
deb: build ## Build the Debian package in target/debian/
	packaging/debian/build $(BINARY) $(OUT)

.PHONY: setup
setup: ## Install missing packages for the tests (Debian, Ubuntu)
	tests/setup

.PHONY: setup-demo
setup-demo: ## Install missing packages for guests and `make demo` only
	tests/setup demo

.PHONY: test-setup
test-setup: ## Test `make setup` in temporary Debian roots: no package is removed or downgraded
	tests/setup-roots

.PHONY: test-install
test-install: ## Run `make demo` from a fresh clone in temporary Debian roots with Rust and `make` (root)
	QVM_SETUP_RUN="make demo" tests/setup-roots bookworm trixie

.PHONY: guests
guests: setup-demo ## Build the small guests for the tests, and fetch the oldest QEMU
	tests/guest/build "$(QVM_GUESTS)" boot tiny qemu-7.2

.PHONY: debian
debian: setup-demo ## Fetch the Debian cloud image for `make demo` and the cloud-init test
	tests/guest/build "$(QVM_GUESTS)" debian

.PHONY: host
host: setup-demo ## Build the Debian image that `make test-host` boots as a host
	tests/guest/build "$(QVM_GUESTS)" host

.PHONY: test
test: setup guests debian ## Run all tests on real QEMU with real guests
	$(CARGO) test --workspace --locked --no-run
	tests/run-all $(TEST_THREADS)

.PHONY: test-all
test-all: setup guests debian host ## Run the tests of `test` and of `test-host` at the same time, with one build
	$(CARGO) test --workspace --locked --no-run
# The package contains the program that the tests run, so that nothing is built while they run.
	packaging/debian/build target/debug/qvm target/test-package
	QVM_DEB="$$(ls -t $(CURDIR)/target/test-package/qvm_*.deb | head -n 1)" tests/run-all $(TEST_THREADS)

.PHONY: test-long
test-long: setup guests debian ## Run the long forms of tests: each QEMU version, each boot of Debian
	QVM_TEST_LONG=1 $(CARGO) test --locked --test it -- --test-threads=$(TEST_THREADS) \
		control::answers disk::limits machine::block_device seed::debian

.PHONY: test-faults
test-faults: setup guests ## Test faults of qvm and of the host for some minutes, and print a table
	timeout 900 bash -c '$(CARGO) test --locked --test it -- --ignored --nocapture --test-threads=1 $(FAULTS) && \
		$(CARGO) test --locked --test crash -- --ignored --nocapture --test-threads=1'

.PHONY: test-host
test-host: setup guests host deb ## Test the package in a VM with systemd and cgroup v2, with nested guests
	QVM_TEST_LONG=1 QVM_DEB="$$(ls -t $(CURDIR)/$(OUT)/qvm_*.deb | head -n 1)" \
		$(CARGO) test --locked --test host -- --ignored --test-threads=1

.PHONY: test-systemd
test-systemd: setup guests ## Test the units under a separate systemd (root, systemd-container)
	$(CARGO) build --locked
	tests/systemd/run

.PHONY: demo
demo: setup-demo ## Run a Debian VM on a bridge from its VM file to a clean shutdown
# The guest image and the program are built in parallel. The dev profile links in seconds.
	. tests/progress.sh; run_steps "guest image" 'tests/guest/build "$(QVM_GUESTS)" debian' \
		"compiler" '$(CARGO) build --profile dev --locked --bin qvm'
	tests/demo

.PHONY: bench
bench: setup guests ## Measure qvm, QEMU by hand and libvirt; write bench/RESULTS.md
	tests/setup bench || echo "bench: libvirt cannot be installed: continuing without it"
	$(CARGO) bench --locked --bench figures

.PHONY: lint
lint: lint-text ## Check formatting, clippy, shell scripts and licenses
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

.PHONY: lint-text
lint-text: ## Check formatting, shell scripts and licenses: `lint` without the compiler
	$(CARGO) fmt --all --check
	if command -v shellcheck >/dev/null; then \
		grep -rlE --exclude-dir=golden '^(#!.*\b(ba)?sh|# shellcheck shell=)' tests packaging .ci fuzz/run | xargs shellcheck -x; \
	else echo "lint: skipped: shellcheck is not installed (\`make setup\` installs it)"; fi
	if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; \
	else echo "lint: skipped: cargo-deny is not installed (\`cargo install cargo-deny\`)"; fi

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZ_SECONDS
	fuzz/run $(FUZZ_SECONDS)

.PHONY: docs
docs: ## Write the generated documents: docs/reference/ and nix/keys.nix
	$(CARGO) build --locked --bin qvm
	target/debug/qvm man qvm --format markdown >docs/reference/verbs.md
	target/debug/qvm man qvm.toml --format markdown >docs/reference/vm-file.md
	target/debug/qvm man qvm-errors --format markdown >docs/reference/errors.md
	target/debug/qvm man qvm.toml --format nix >nix/keys.nix

.PHONY: clean-guests
clean-guests: ## Delete the built guests
	rm -rf "$(QVM_GUESTS)"

.PHONY: help
help: ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16
