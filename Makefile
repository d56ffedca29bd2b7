# `make demo` and `make test` work on a fresh machine: each installs what is missing and prints what it installs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Installs Debian packages. Who is not root needs sudo.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
INSTALL = $(AS_ROOT) apt-get update -qq && $(AS_ROOT) apt-get install -y -qq
DENY_VERSION := 0.20.2
TOOLS := target/tools
DENY := $(TOOLS)/bin/cargo-deny
WASM_TARGET := wasm32-wasip2
# Linting does not link: any file can stand in for libFuzzer, whose C++ is then not built.
FUZZ_ENV := CUSTOM_LIBFUZZER_PATH=$(CURDIR)/fuzz/Cargo.toml

.PHONY: help demo test clock build static platforms lint deny docs examples clients tls bench bench-policies tools peers

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: tools ## Build the gateway and show it at work before a scripted upstream. DEMO_ONCE=1 exits after the tour.
	@echo "== building the gateway, its policies and the demo (the first build takes a few minutes)"
	$(CARGO) build --locked -p tollgate -p demo
	target/debug/demo

test: tools peers lint ## Check the format, lint, run all tests, check licences, build the documentation.
	@echo "== building what the tests run"
	$(CARGO) build --locked --workspace --bins
	@echo "== all tests"
	$(CARGO) test --locked --workspace --no-fail-fast
	$(MAKE) examples deny docs

# Cargo runs the test programs, and them alone, under this command.
CLOCK_RUNNER = CARGO_TARGET_$(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER
CLOCK_TESTS ?= --test credentials --test operators -- canary:: refreshing:: status:: watching::

clock: tools ## Run some tests with the clock a year ahead and a month back. CLOCK_TESTS names others.
	@command -v faketime > /dev/null || { echo "== installing faketime"; $(INSTALL) faketime; }
	@for offset in +365d -30d; do \
		echo "== tests with the clock at $$offset: $(CLOCK_TESTS)"; \
		env FAKETIME_DONT_FAKE_MONOTONIC=1 $(CLOCK_RUNNER)="faketime -f $$offset" \
			$(CARGO) test --locked --no-fail-fast $(CLOCK_TESTS) || exit 1; \
	done

build: tools ## Build the release binary.
	$(CARGO) build --locked --release -p tollgate
	@ls -l target/release/tollgate

MUSL_TARGET := $(shell uname -m)-unknown-linux-musl

static: tools ## Build a release binary that needs no shared library.
	@command -v musl-gcc > /dev/null || { echo "== installing musl-tools, a C compiler for musl"; $(INSTALL) musl-tools; }
	@rustup target list --installed | grep -qx $(MUSL_TARGET) || rustup target add $(MUSL_TARGET)
	$(CARGO) build --locked --release -p tollgate --target $(MUSL_TARGET)
	@ls -l target/$(MUSL_TARGET)/release/tollgate

PLATFORMS := x86_64-pc-windows-gnu aarch64-apple-darwin

# Checking does not link: any program that makes the expected files can stand in for the C compilers.
platforms: tools ## Check that the gateway compiles for Windows and macOS.
	@for target in $(PLATFORMS); do \
		rustup target list --installed | grep -qx $$target || { echo "== installing the target $$target"; rustup target add $$target; }; \
		echo "== checking for $$target"; \
		CC=$(CURDIR)/tests/stand-ins/cc AR=$(CURDIR)/tests/stand-ins/ar \
			$(CARGO) check --locked -p tollgate --target $$target || exit 1; \
	done

lint:
	@echo "== format and lints"
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@echo "== format and lints of the fuzz targets, a separate workspace"
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(FUZZ_ENV) $(CARGO) clippy --locked --manifest-path fuzz/Cargo.toml --target-dir target -- -D warnings

examples: ## Build the example policies as components.
	@echo "== the example policies, as components"
	$(CARGO) build --locked --target $(WASM_TARGET) --profile policy --target-dir target/policies -p fewest-in-flight -p tag-sessions

deny: $(DENY)
	@echo "== licences, bans and sources of the dependencies"
	$(DENY) check bans licenses sources

docs:
	@echo "== the documentation"
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --workspace --lib --exclude scripted-upstream

tls: tools ## Run testssl.sh against the gateway.
	@command -v testssl > /dev/null || { echo "== installing testssl.sh"; $(INSTALL) testssl.sh; }
	$(CARGO) test --locked --test requests -- --ignored testssl

clients: ## Run openai-python, openai-node and the Codex CLI against the gateway.
	$(CARGO) build --locked --workspace --bins
	tests/clients/run

bench: tools examples ## Measure the gateway next to a bare hyper proxy and nginx, the policies' calls, and reloads.
	@command -v nginx > /dev/null || { echo "== installing nginx"; $(INSTALL) nginx-light; }
	@echo "== the components for the reload and loop measurements"
	$(CARGO) build --locked --target $(WASM_TARGET) --profile policy --target-dir target/policies -p openai-pricing -p faulty-balancer
	$(CARGO) build --locked --release -p tollgate -p tollgate-bench
	$(CARGO) bench --locked -p tollgate-bench
	target/release/tollgate-bench $(BENCH_ARGS)

tools:
	@command -v cc > /dev/null || { echo "== installing a C compiler (SQLite and zstd are built from source)"; $(INSTALL) gcc libc6-dev; }
	@command -v $(CARGO) > /dev/null || { echo "cargo is missing: install Rust with rustup (https://rustup.rs)"; exit 1; }
	@rustup target list --installed | grep -qx $(WASM_TARGET) || { echo "== installing the target $(WASM_TARGET)"; rustup target add $(WASM_TARGET); }
	@for part in clippy rustfmt; do rustup component list --installed | grep -q "^$$part" || { echo "== installing $$part"; rustup component add $$part; }; done

# What some tests attack or inspect the gateway with. Without a package they are skipped.
peers:
	@missing=""; for program in openssl curl slowhttptest; do command -v $$program > /dev/null || missing="$$missing $$program"; done; \
	if [ -n "$$missing" ]; then \
		echo "== installing$$missing, which some tests use"; \
		{ $(INSTALL) $$missing; } || echo "not installed: the tests that need them are skipped"; \
	fi

$(DENY):
	@echo "== installing cargo-deny $(DENY_VERSION) into $(TOOLS) (some minutes)"
	$(CARGO) install cargo-deny --locked --version $(DENY_VERSION) --root $(TOOLS)
