# A thin front: every verb is a command one could type. `make help` lists them.

SHELL := /bin/bash
ARCH ?= $(shell uname -m)
DESTDIR ?=
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET_DIR)/$(ARCH)-unknown-linux-gnu/release

# For this machine as cargo does it; for the other architecture with what that takes.
CARGO := $(if $(filter $(ARCH),$(shell uname -m)),cargo,dist/cross/cargo $(ARCH))
# Static, so that the programs run on any distribution and in an empty root.
STATIC := dist/cross/cargo $(ARCH) build --quiet --release --locked

.PHONY: help demo test test-aarch64 check unit vm-test conformance oci filesystem test-docker endurance fuzz build guest install deb clean

help: ## List the verbs
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

demo: ## A container from its own kernel, from nothing; says what it does
	@tests/demo/run $(ARCH)

test: ## Everything: check, unit, fuzz, package, vm-test
	@tests/run

test-aarch64: ## The same of aarch64, on any machine
	@tests/run aarch64

check: ## Formatting, lints (ARCH=aarch64: that one's), documentation
	cargo fmt --all --check
	cargo fmt --manifest-path vmm/fuzz/Cargo.toml --check
	$(CARGO) clippy --quiet --locked --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --quiet --locked --workspace --no-deps

unit: ## Tests that need no virtual machine
	cargo nextest run --locked --workspace --exclude hull-tests

vm-test: ## Tests that need one: they run in the test host
	@tests/integration/run --arch $(ARCH)

conformance: ## containerd's own client suite, on runc and on Hull, compared; half an hour
	@tests/conformance/run

oci: ## The OCI specification's cases, on Hull, runc and crun, compared
	@tests/integration/run --references oci::

filesystem: ## fsx and POSIX cases in a container, on runc and on Hull, compared; half an hour
	@tests/filesystem/run

test-docker: ## Docker's features, on runc and on Hull, compared; CASES="run.limits names" for some; an hour
	@tests/docker/run $(CASES)

endurance: ## 200 lives of a container, 100 processes at once; half an hour
	@tests/integration/run --timeout 7200 endurance:: --ignored --nocapture

fuzz: ## Hostile guests, daemons and packets, 5 seconds each (docs/fuzzing.md)
	@vmm/fuzz/run

bench: ## hull-vmm beside QEMU's microvm machine, in turns; into docs/performance.md; half an hour
	@tests/bench/run

build: ## The programs, static, in $(BIN)
	$(STATIC) -p hull-vmm -p hull-shim

guest: ## The guest's kernel and image; prints where they are
	@guest-kernel-config/build --arch $(ARCH)
	@agent/image/build --arch $(ARCH)

install: build ## Everything a host needs, under DESTDIR
	install -D -m 755 -t $(DESTDIR)/usr/bin $(BIN)/containerd-shim-hull-v2 $(BIN)/hull
	ln -sfn hull $(DESTDIR)/usr/bin/hull-oci
	install -D -m 755 -t $(DESTDIR)/usr/lib/hull $(BIN)/hull-vmm
	kernel=$$(guest-kernel-config/build --arch $(ARCH)) && install -D -m 644 "$$kernel" $(DESTDIR)/usr/lib/hull/vmlinux
	image=$$(agent/image/build --arch $(ARCH)) && install -D -m 644 "$$image" $(DESTDIR)/usr/lib/hull/guest.erofs
	test -e $(DESTDIR)/etc/hull/config.toml || install -D -m 644 dist/config.toml $(DESTDIR)/etc/hull/config.toml
	install -d $(DESTDIR)/usr/share/man/man1
	cargo run --quiet --locked -p hull-shim --example man -- $(DESTDIR)/usr/share/man/man1

deb: ## Debian's package of it, $(TARGET_DIR)/hull_$(ARCH).deb
	@mkdir -p $(TARGET_DIR)
	@dist/deb --arch $(ARCH) $(TARGET_DIR)/hull_$(ARCH).deb

clean: ## Remove what was built here; the caches outside stay
	cargo clean
