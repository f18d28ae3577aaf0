# Everything as root on Debian 12. Both `make demo` and `make test` do all set-up themselves.
#
#   make setup   Debian packages, .venv
#   make demo    an Exim pod: mail in, checkpoint, everything gone, restart, mail out
#   make test    all tests (TEST_REQUIRE=all: a missing capability fails)
#   make bench   measurements
#   make clean   what the above left, but for Debian packages

SHELL := /bin/bash
PACKAGES := acl attr catatonit debootstrap fuse3 gcc iproute2 kmod libc6-dev libfuse3-dev \
    libseccomp2 make mmdebstrap nftables pkg-config procps python3-dev python3-seccomp python3-venv
TEST_REQUIRE ?= all
export TEST_REQUIRE

.PHONY: setup packages test demo bench clean

setup: .venv/.stamp

packages:
	@missing=$$(dpkg-query -W -f='$${Package} $${db:Status-Status}\n' $(PACKAGES) 2>/dev/null \
	  | awk '$$2 == "installed" {print $$1}' | sort | comm -13 - <(printf '%s\n' $(PACKAGES) | sort)); \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian packages:" $$missing; \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $$missing; \
	fi

.venv/.stamp: pyproject.toml | packages
	@echo "making .venv"
	@/usr/bin/python3 -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

test: setup packages
	.venv/bin/python -m pytest $(PYTEST_ARGS)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
