# Everything as root on Debian 12. Each target does all set-up that it needs itself.
#
#   make setup   Debian packages, .venv (PYFUSE3=plain: docs/notes/stackfs-speed.md)
#   make demo    an Exim pod: mail in, checkpoint, everything gone, restart, mail out
#   make demo-apache, demo-redis   a web server, a database moves between two hosts under load
#                (DEMO_ARGS="--moves 50")
#   make test    all tests (TEST_REQUIRE=all: a missing capability fails, with PYFUSE3=plain the
#                patched pyfuse3, too; TEST_REQUIRE= skips what needs it; TEST_JOBS=2 at a time;
#                PYTEST_ARGS=…)
#   make fuzz    archives that are wrong in random ways, for some minutes (FUZZ=20: how many times
#                as many as in make test)
#   make test-programs   real programs under load, restarted ROUNDS=20 times each
#   make test-kernels  pods between kernels, in guests of a lab (AUTOPOD_LAB=PROGRAM; KERNELS_ARGS=…:
#                docs/notes/kernels.md)
#   make test-pacemaker  a cluster of two nodes in namespaces: crm_resource --move moves a pod, whose
#                clients go on (docs/pacemaker.md)
#   make test-fleet  three hosts in namespaces, with a cluster of etcd: an update rolls through them
#                under load, then members, agents and hosts are killed at random moments
#                (FLEET_ARGS="--rounds 30 --seed 1": docs/notes/fleet.md)
#   make test-reboot  the status service reboots a guest of the lab into a new kernel, and its pods
#                live on (AUTOPOD_LAB=PROGRAM; REBOOT_ARGS="--kernels 6.18-6.1 --power-failure":
#                docs/notes/status.md)
#   make test-moves  pods move between two guests with different kernels, and their clients go on
#                (AUTOPOD_LAB=PROGRAM; MOVES_ARGS="--kernels 6.1-6.18-6.1")
#   make bench   measurements; the table goes to build/results.md, too
#                (BENCH_ARGS=files: file systems only; with --pin 1 or --free one way of two;
#                BENCH_ARGS=snapshots; BENCH_ARGS=incremental; BENCH_ARGS=follow: a lazy restart;
#                BENCH_ARGS=moves: migrations; BENCH_ARGS=checkpoints: beside CRIU, where BENCH_CRIU
#                or PATH has it; BENCH_ARGS=fleet: simulated hosts in etcd and SQLite, also with
#                --hosts 1000)
#   make clean   remove what the above left, but for Debian packages

SHELL := /bin/bash
PACKAGES := acl apt-utils attr catatonit debootstrap erofs-utils fuse3 gcc gpg gpg-agent iproute2 kmod \
    libc6-dev libfuse3-dev libseccomp2 make mmdebstrap nftables patch pkg-config procps python3-dev python3-seccomp python3-venv \
    squashfs-tools systemd tzdata umoci
OURS := stackfs launcher ckpt autopod
TEST_REQUIRE ?= all
export TEST_REQUIRE
TEST_JOBS ?= 2
PIP := .venv/bin/pip --quiet --disable-pip-version-check

# As pip builds it, from the same source, with some lines changed. Without that all works, too.
PATCH := patches/pyfuse3.patch
define PATCHED_PYFUSE3
rm -rf build/pyfuse3 && mkdir -p build/pyfuse3 \
&& $(PIP) download --no-deps --no-binary pyfuse3 -d build pyfuse3==3.5.0 \
&& tar -x -f build/pyfuse3-3.5.0.tar.gz -C build/pyfuse3 --strip-components=1 \
&& patch --quiet --directory build/pyfuse3 --strip 1 < $(PATCH) \
&& $(PIP) install build/pyfuse3
endef

# Servers that tests and benchmarks start. Taken out of their packages, not installed: that would start one.
ETCD := build/etcd/usr/bin/etcd
REGISTRY := build/registry/usr/bin/docker-registry

# Nodes in namespaces have these laid over the host's own: nothing is installed, no service started.
CLUSTER := pacemaker corosync crmsh libxml2-utils resource-agents
PACEMAKER := build/pacemaker/root/usr/sbin/pacemakerd
DOWNLOAD = apt-get install -yq --download-only --no-install-recommends --reinstall \
    -o Dir::Cache::archives=$(CURDIR)/build/pacemaker/archives $(CLUSTER)

.PHONY: setup packages compiled demo demo-apache demo-redis test test-programs test-kernels \
    test-pacemaker test-fleet test-reboot test-moves fuzz bench clean

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
.venv/.stamp: pyproject.toml $(PATCH) | packages
	@echo "making .venv"
	@/usr/bin/python3 -m venv .venv
	@[ "$(PYFUSE3)" = plain ] || { $(PATCHED_PYFUSE3); } \
	    || echo "could not patch pyfuse3: going on without, listings will be slower"
	@$(PIP) install -e '.[dev]' --config-settings editable_mode=compat
	@touch $@

$(ETCD): SERVER := etcd-server
$(REGISTRY): SERVER := docker-registry
$(ETCD) $(REGISTRY): | packages
	@echo "fetching $(SERVER) for the tests"
	@rm -rf $(subst /usr/bin/,,$(dir $@)) && mkdir -p $(subst /usr/bin/,,$(dir $@))
	@cd $(subst /usr/bin/,,$(dir $@)) && { apt-get download -q $(SERVER) \
	    || { apt-get update -q && apt-get download -q $(SERVER); } } && dpkg-deb -x $(SERVER)_*.deb .

# Each command is a fresh interpreter: none shall compile what has not changed.
compiled: .venv/.stamp
	@.venv/bin/python -m compileall -q $(OURS)

demo: setup
	@.venv/bin/python -m examples.exim.demo

demo-apache: setup
	@.venv/bin/python -m examples.apache.demo $(DEMO_ARGS)

demo-redis: setup
	@.venv/bin/python -m examples.redis.demo $(DEMO_ARGS)

# What pytest makes of its plugins and of the tests for their assertions is kept, too: seconds.
test: export PYTHONDONTWRITEBYTECODE :=
test: PACKAGES += chromium chromium-driver dbus fonts-inter skopeo systemd-sysv
test: setup $(ETCD) $(REGISTRY)
	.venv/bin/python -m pytest -n $(TEST_JOBS) --dist worksteal $(PYTEST_ARGS)

fuzz: export FUZZ ?= 20
fuzz: setup
	.venv/bin/python -m pytest tests/unit/ckpt/test_fuzz.py tests/kernel/ckpt/test_fuzz_real.py $(PYTEST_ARGS)

ROUNDS ?= 20
test-programs: setup
	.venv/bin/python -m pytest tests/kernel/autopod/programs -rP --rounds $(ROUNDS) $(PYTEST_ARGS)

test-kernels: setup
	@.venv/bin/python -m tests.kernels $(KERNELS_ARGS)

$(PACEMAKER): | packages
	@echo "fetching Pacemaker for the test"
	@rm -rf build/pacemaker && mkdir -p build/pacemaker/archives/partial build/pacemaker/new
	@$(DOWNLOAD) >build/pacemaker/log 2>&1 || { apt-get update -q && $(DOWNLOAD); }
	@for package in build/pacemaker/archives/*.deb; do dpkg-deb -x $$package build/pacemaker/new || exit; done
	@mv build/pacemaker/new build/pacemaker/root

test-pacemaker: setup $(PACEMAKER)
	@.venv/bin/python -m tests.pacemaker

test-fleet: setup $(ETCD)
	@.venv/bin/python -m tests.fleet $(FLEET_ARGS)

test-reboot: PACKAGES += e2fsprogs
test-reboot: setup
	@.venv/bin/python -m tests.reboot $(REBOOT_ARGS)

test-moves: PACKAGES += e2fsprogs
test-moves: setup
	@.venv/bin/python -m tests.moves $(MOVES_ARGS)

bench: PACKAGES += bubblewrap crun fio fuse-overlayfs git runc systemd-container unionfs-fuse wrk
bench: setup $(ETCD)
	@$(PIP) install -e '.[bench]' --config-settings editable_mode=compat
	@.venv/bin/python -m bench $(BENCH_ARGS)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(OURS) tests examples bench -name __pycache__ -prune -exec rm -rf {} +
	rm -rf /var/cache/autopod
