# Two commands on a fresh machine: `make run` and `make test`. They need Python 3.11 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What sqlfluff reads. The lab's statements and the filling have places for names and values, which it does not know.
SQL_FILES := $(wildcard sql/*/*.sql migrations/*.sql crafely/db/objects/*.sql crafely/db/backup/*.sql crafely/db/prisma/*.sql crafely/db/prisma/*/*.sql)

# Another server for the tests: PG=/usr/lib/postgresql/15/bin (its programs) or PG=postgresql://… (one that runs).
PG ?= $(CRAFELY_TEST_POSTGRES)

.PHONY: run test torture failover soak import-prisma schemathesis attack scale lint schema check wheel audit-dependencies constraints clean

run: $(VENV)/.run  ## install, start the embedded PostgreSQL, migrate, print a key, serve
	@exec $(BIN)/crafely serve

# Some of the tests: TESTS="tests/db tests/store". All of them behind PgBouncer, where it is installed: POOLER=1.
# With a standby that answers what it may: STANDBY=1.
TESTS ?=
POOLER ?=
STANDBY ?=

test: $(VENV)/.dev  ## install and run every test
	CRAFELY_TEST_POOLER="$(POOLER)" CRAFELY_TEST_STANDBY="$(STANDBY)" CRAFELY_TEST_POSTGRES="$(PG)" $(BIN)/python -m pytest -n 4 --dist loadfile $(TESTS)

torture: $(VENV)/.dev  ## kill -9 workers and PostgreSQL under load, twenty times; two of them are among the tests
	TORTURE_KILLS=20 CRAFELY_TEST_POSTGRES="$(PG)" $(BIN)/python -m pytest -s -q -o faulthandler_timeout=0 tests/torture

TIMES ?= 20

failover: $(VENV)/.dev  ## lose the primary under load and promote its standby, TIMES in a row; once among the tests
	FAILOVER_TIMES=$(TIMES) CRAFELY_TEST_POSTGRES="$(PG)" $(BIN)/python -m pytest -s -q -o faulthandler_timeout=0 tests/failover/test_failover.py

MINUTES ?= 10
# Seconds from one fault to the next, 0 for none; which faults come when; and a file for a picture of it.
FAULTS ?= 20
SEED ?= $(shell date +%s)
PICTURE ?=

soak: $(VENV)/.dev  ## a mixed load for MINUTES, a fault every FAULTS seconds; some seconds of it are among the tests
	SOAK_MINUTES=$(MINUTES) SOAK_FAULTS=$(FAULTS) SOAK_SEED=$(SEED) SOAK_PICTURE=$(PICTURE) CRAFELY_TEST_POSTGRES="$(PG)" $(BIN)/python -m pytest -s -q -o faulthandler_timeout=0 tests/soak

KEYS ?= 1000000
RECORDS ?= 5000000

import-prisma: $(VENV)/.dev  ## move in from a made Prisma database of KEYS and RECORDS, killed once; on disk, some 6 GB
	TMPDIR=/var/tmp IMPORT_KEYS=$(KEYS) IMPORT_RECORDS=$(RECORDS) CRAFELY_TEST_POSTGRES="$(PG)" $(BIN)/python -m pytest -s -q -o faulthandler_timeout=0 tests/cli/test_import_prisma.py

REQUESTS ?= 20000

schemathesis: $(VENV)/.dev  ## REQUESTS requests made from /openapi.json; some two thousand of them are among the tests
	SCHEMATHESIS_REQUESTS=$(REQUESTS) CRAFELY_TEST_POSTGRES="$(PG)" $(BIN)/python -m pytest -s -q -o faulthandler_timeout=0 tests/schemathesis

attack: $(VENV)/.dev  ## the attacks that are among the tests, more of each, and what timing tells; prints what was answered
	ATTACK=1 CRAFELY_TEST_POSTGRES="$(PG)" $(BIN)/python -m pytest -q tests/attack

ROWS ?= 50000000

# On a disk with 40 GB free; they are removed afterwards. It takes a quarter of an hour.
scale: $(VENV)/.dev  ## one user's sums among ROWS rows of usage and among a million, and a month's retention
	CRAFELY_DATA_DIR=.crafely/scale $(BIN)/crafely bench scale --rows $(ROWS) --check; done=$$?; rm -rf .crafely/scale; exit $$done

lint: $(VENV)/.dev $(VENV)/.sqlfluff  ## lint, format and types, of Python and of SQL
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/crafely migrate lint

schema: $(VENV)/.dev  ## write down what the migrations make: sql/schema.sql
	$(BIN)/crafely migrate schema > schema.new
	mv schema.new sql/schema.sql

check: $(VENV)/.dev  ## every SQL file against its signature, on a real database
	$(BIN)/crafely check

wheel: $(VENV)/.dev  ## build dist/*.whl
	$(BIN)/python -m build --no-isolation --wheel --outdir dist

audit-dependencies: $(VENV)/.dev  ## known vulnerabilities of the versions in constraints.txt; asks osv.dev
	@$(BIN)/python .ci/audit_dependencies.py

constraints: $(VENV)/.dev  ## write down the versions that are installed now
	{ head -n 1 constraints.txt; $(BIN)/pip freeze --exclude-editable; } > constraints.new
	mv constraints.new constraints.txt

clean:  ## remove what was installed and built; data in .crafely stays
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# What serves needs no tools for tests; both are installed once, and again when their versions change.
$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "crafely needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "making a virtual environment in $(VENV)/"
	@$(PYTHON) -m venv $(VENV)
	@echo "installing what serves into it: up to a minute, this once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing what tests, this once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# It takes 20 ms a line: only files that changed, and all of them when the rules did.
$(VENV)/.sqlfluff: $(SQL_FILES) .sqlfluff .sqlfluffignore | $(VENV)/.dev
	$(BIN)/sqlfluff lint --disable-progress-bar $(or $(filter %.sql,$(if $(filter .sqlfluff%,$?),$^,$?)),sql)
	@touch $@
