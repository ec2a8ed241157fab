# `make help` lists what there is. Everything that is made lands in target/ and fuzz/target/, but bench/RESULTS.md.

# Found in PATH: the sandbox of Nix has no /bin/bash.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# Where the guests for the tests are; several worktrees may share one directory.
export QVM_GUESTS ?= $(CURDIR)/target/guests
# Tests that boot guests: how many at once. They wait for guests more than for a CPU.
TEST_THREADS ?= 3
# The tests of faults that take long, beside those of `crash`.
FAULTS ?= supervisor::host_faults net::taps start::admission supervisor::load
# Minutes for the kills of `make test-faults`, which may take 15 in all.
export QVM_MINUTES ?= 3
# Seconds for each fuzz target.
FUZZ_SECONDS ?= 60

CARGO := cargo

# Where `make install` puts things, below DESTDIR; PREFIX=/usr/local works as well, systemd looks there too.
PREFIX ?= /usr
DESTDIR ?=
# Cargo's profile of what is built, installed and packaged.
PROFILE ?= release
# What it installs, and runs, for its manual pages and completions.
BINARY ?= target/$(PROFILE:dev=debug)/qvm
# A program that runs BINARY, where it is built for another CPU.
EMULATOR ?=
# Where zsh looks; Debian's looks elsewhere.
ZSH_COMPLETIONS ?= $(PREFIX)/share/zsh/site-functions
# Where `make deb` puts the package.
OUT ?= target/debian

.PHONY: build
build: ## the release binary, target/release/qvm
	$(CARGO) build --profile $(PROFILE) --locked

.PHONY: install
install: ## the built binary, its units, generators, completions and documents, below $(DESTDIR)$(PREFIX)
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
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/qvm README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE $(wildcard docs/*.md)
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/qvm/examples $(wildcard examples/*.toml examples/*.yaml)
	$(EMULATOR) $(BINARY) man qvm | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/man/man1/qvm.1
	$(EMULATOR) $(BINARY) man qvm.toml | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/man/man5/qvm.toml.5
	$(EMULATOR) $(BINARY) completions bash | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/qvm
	$(EMULATOR) $(BINARY) completions zsh | install -D -m 644 /dev/stdin $(DESTDIR)$(ZSH_COMPLETIONS)/_qvm
	$(EMULATOR) $(BINARY) completions fish | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/qvm.fish

.PHONY: deb
deb: build ## the Debian package, in target/debian/
	packaging/debian/build $(BINARY) $(OUT)

.PHONY: setup
setup: ## installs what the tests need, if anything is missing (Debian, Ubuntu)
	tests/setup

.PHONY: setup-demo
setup-demo: ## the same for the guests and `make demo` alone
	tests/setup demo

.PHONY: test-setup
test-setup: ## tries `make setup` in throw-away Debian roots: nothing is removed or downgraded
	tests/setup-roots

.PHONY: test-install
test-install: ## runs `make demo` from a fresh clone in throw-away Debian roots with Rust and `make` alone (root)
	QVM_SETUP_RUN="make demo" tests/setup-roots bookworm trixie

.PHONY: guests
guests: setup-demo ## the small guests for the tests, and the oldest QEMU
	tests/guest/build "$(QVM_GUESTS)" boot tiny qemu-7.2

.PHONY: debian
debian: setup-demo ## the Debian cloud image that `make demo` and the cloud-init test boot
	tests/guest/build "$(QVM_GUESTS)" debian

.PHONY: host
host: setup-demo ## the Debian that `make test-host` boots as a host
	tests/guest/build "$(QVM_GUESTS)" host

.PHONY: test
test: setup guests debian ## all tests, on real QEMU and real guests
	$(CARGO) test --workspace --locked --no-run
# The longest one, a Debian that is set up, mostly waits for one CPU: beside the others.
	$(CARGO) test --locked --test it seed::debian & debian=$$!; failed=0; \
		$(CARGO) test --workspace --locked --no-fail-fast -- --test-threads=$(TEST_THREADS) --skip cloud_init_sets_the_guest_up_once || failed=1; \
		wait $$debian || failed=1; exit $$failed

.PHONY: test-faults
test-faults: setup guests ## what is lost when qvm or its host fails: some minutes, and a table
	timeout 900 bash -c '$(CARGO) test --locked --test it -- --ignored --nocapture --test-threads=1 $(FAULTS) && \
		$(CARGO) test --locked --test crash -- --ignored --nocapture --test-threads=1'

.PHONY: test-host
test-host: setup guests host deb ## the package on a host of its own, a VM with systemd and cgroup v2, with guests inside
	QVM_DEB="$$(ls -t $(CURDIR)/$(OUT)/qvm_*.deb | head -n 1)" \
		$(CARGO) test --locked --test host -- --ignored --test-threads=1

.PHONY: test-systemd
test-systemd: setup guests ## the units under a systemd of their own (root, systemd-container)
	$(CARGO) build --locked
	tests/systemd/run

.PHONY: demo
demo: setup-demo ## a real VM on a bridge, from its file to a clean stop
# The guest is built while the compiler works. The profile is that of the tests: it links in seconds.
	. tests/progress.sh; run_steps "guest image" 'tests/guest/build "$(QVM_GUESTS)" debian' \
		"compiler" '$(CARGO) build --profile dev --locked --bin qvm'
	tests/demo

.PHONY: bench
bench: setup guests debian ## qvm beside raw QEMU, and libvirt where it is installed; writes bench/RESULTS.md
	$(CARGO) bench --locked --bench figures

.PHONY: lint
lint: ## formatting, clippy, shell scripts, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	if command -v shellcheck >/dev/null; then \
		grep -rlE --exclude-dir=golden '^(#!.*\b(ba)?sh|# shellcheck shell=)' tests packaging .ci fuzz/run | xargs shellcheck -x; \
	else echo "lint: skipped: shellcheck is not installed (\`make setup\` does that)"; fi
	if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; \
	else echo "lint: skipped: cargo-deny is not installed (\`cargo install cargo-deny\`)"; fi

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZ_SECONDS
	fuzz/run $(FUZZ_SECONDS)

.PHONY: clean-guests
clean-guests: ## throws the built guests away
	rm -rf "$(QVM_GUESTS)"

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16
