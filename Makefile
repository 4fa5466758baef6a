# `make demo` runs the node once from end to end; `make test` passes the tests. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_OPTIONS ?=
TEST_WORKERS ?= 2
PEERS := redis-server orthanc orthanc-dicomweb dcmtk dicom3tools chromium postgresql openssl rsyslog rsyslog-gnutls \
    docker-compose prometheus ceph-mon ceph-osd ceph-common radosgw iproute2

.DEFAULT_GOAL := help
.PHONY: help demo test bench peers lint types imports audit check clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

demo: $(VENV)/.installed  ## run the whole node once: a head CT goes in, SR, SEG and overlays come back
	$(BIN)/ichnode demo --once

test: $(VENV)/.installed-dev peers  ## install the test peers where that is allowed, and pass the tests; TEST_WORKERS=0: one by one
	$(BIN)/python -m pytest -n $(TEST_WORKERS)

bench: $(VENV)/.installed-dev peers  ## speed beside dcmtk, Orthanc and plain torch: bench-report/report.md, some 20 minutes
	$(BIN)/python -m tests.bench

lint: $(VENV)/.installed-dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy
	$(BIN)/mypy

imports: $(VENV)/.installed-dev  ## imports run one way
	$(BIN)/lint-imports

audit: $(VENV)/.installed-dev  ## known weaknesses of what is installed; fails where pypi.org does not tell
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit $(PIP_OPTIONS)
	$(BIN)/python -m pip list --format=freeze --exclude-editable | sed 's/+.*//' > $(VENV)/audited.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps -r $(VENV)/audited.txt

check: lint types imports test  ## everything

peers:  ## real DICOM and Redis peers for the tests, from Debian; without them their tests are skipped
	@missing=""; for p in redis-server Orthanc storescu dciodvfy chromium openssl rsyslogd docker-compose promtool ceph-mon \
	    ceph-osd ceph radosgw ip; do \
	    PATH="$$PATH:/usr/sbin" command -v $$p >/dev/null || missing="$$missing $$p"; done; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	ls /usr/*/orthanc/libOrthancDicomWeb* >/dev/null 2>&1 || missing="$$missing orthanc-dicomweb"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then root=""; elif sudo -n true 2>/dev/null; then root="sudo"; \
	else echo "cannot install$$missing without root: their tests will be skipped"; exit 0; fi; \
	command -v apt-get >/dev/null || { echo "no apt-get: tests of$$missing will be skipped"; exit 0; }; \
	$$root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$root apt-get install -y -qq \
	    --no-install-recommends $(PEERS) >/dev/null || echo "could not install$$missing"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . $(PIP_OPTIONS)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' $(PIP_OPTIONS)
	@touch $@

clean:  ## remove the virtual environment
	rm -rf $(VENV)
