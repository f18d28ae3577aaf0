# Everything as root on Debian 12. Each target does all set-up that it needs itself.
#
#   make setup   Debian packages, .venv
#   make demo    an Exim pod: mail in, checkpoint, everything gone, restart, mail out
#   make test    all tests (TEST_REQUIRE=all: a missing capability fails; PYTEST_ARGS=…)
#   make bench   measurements; the table goes to build/results.md, too
#   make clean   remove what the above left, but for Debian packages

SHELL := /bin/bash
PACKAGES := acl attr catatonit debootstrap erofs-utils fuse3 gcc iproute2 kmod libc6-dev libfuse3-dev \
    libseccomp2 make mmdebstrap nftables pkg-config procps python3-dev python3-seccomp python3-venv \
    squashfs-tools umoci
OURS := stackfs launcher ckpt autopod
TEST_REQUIRE ?= all
export TEST_REQUIRE

.PHONY: setup packages compiled demo test bench clean

setup: packages .venv/.stamp compiled

packages:
	@missing=$$(dpkg-query -W -f='$${Package} $${db:Status-Status}\n' $(PACKAGES) 2>/dev/null \
	  | awk '$$2 == "installed" {print $$1}' | sort | comm -13 - <(printf '%s\n' $(PACKAGES) | sort)); \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian packages:" $$missing; \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -yq --no-install-recommends $$missing; \
	fi

# editable_mode=compat: a path, not an import hook that each start would pay for.
.venv/.stamp: pyproject.toml | packages
	@echo "making .venv"
	@/usr/bin/python3 -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check -e '.[dev]' \
	    --config-settings editable_mode=compat
	@touch $@

# Each command is a fresh interpreter: none shall compile what has not changed.
compiled: .venv/.stamp
	@.venv/bin/python -m compileall -q $(OURS)

demo: setup
	@.venv/bin/python -m examples.exim.demo

test: setup
	.venv/bin/python -m pytest $(PYTEST_ARGS)

bench: setup
	@.venv/bin/python -m bench

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(OURS) tests examples bench -name __pycache__ -prune -exec rm -rf {} +
	rm -rf /var/cache/autopod
