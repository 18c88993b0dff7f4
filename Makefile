PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EMULATOR := .venv-emulator
EMULATOR_READY := $(EMULATOR)/.ready
AUDIT := .venv-audit
AUDIT_READY := $(AUDIT)/.ready

# A checkout has no bytecode: let the first process write it, so that later processes need not compile again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: environments demo test collect fuzz audit test-browser test-prometheus test-compose screenshots test-bigquery chaos chaos-mutants recovery seasons lint types check bench lock clean help

# uv takes a quarter of pip's time. Where it fails, pip installs: only pip reads pip's own settings, such as an index in pip.conf.
install = $(BIN)/uv pip install --quiet --python $(1)/python --compile-bytecode $(2) || \
	$(1)/python -m pip install --quiet --disable-pip-version-check $(2)

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "Installing the $$(grep -c '^[a-z]' requirements.lock) packages of requirements.lock into $(VENV), about 1 GB on disk:"
	@echo "this takes half a minute, and longer on a slow network. Later calls start at once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock | cut -d' ' -f1)"
	$(call install,$(BIN),--requirement requirements.lock)
	$(call install,$(BIN),--no-deps --editable .)
	$(BIN)/python -m compileall -q gated_backfill common jobs producer worker
	@touch $(READY)

# The BigQuery emulator has its own environment, because its pins and its pytest plugin would conflict with ours.
$(EMULATOR_READY): tests/emulator/requirements.lock | $(READY)
	@echo "Installing the BigQuery emulator for the tests into $(EMULATOR): this can take minutes on a slow network."
	$(PYTHON) -m venv $(EMULATOR)
	$(call install,$(EMULATOR)/bin,--requirement tests/emulator/requirements.lock)
	@touch $(EMULATOR_READY)

# The auditor has its own environment, because its dependencies are not ours and must not be audited.
$(AUDIT_READY): tests/audit.txt | $(READY)
	$(PYTHON) -m venv $(AUDIT)
	$(call install,$(AUDIT)/bin,--requirement tests/audit.txt)
	@touch $(AUDIT_READY)

environments: $(READY) $(EMULATOR_READY) $(AUDIT_READY)  ## create the virtual environments

demo: $(READY)  ## install, generate a season of data with the incident, and run the example job
	$(BIN)/backfill demo

test: $(READY) $(EMULATOR_READY)  ## install, and run the tests
	$(BIN)/python -m pytest --numprocesses 4 --dist worksteal $(ARGS)

# pytest compiles a test file with its assertions rewritten: for all files that takes longer than everything else before
# the first test. Each process of `make test` would do it, because they begin at the same moment.
collect: $(READY)  ## import the tests, and write their bytecode
	@out="$$($(BIN)/python -m pytest --collect-only -qq)" || { echo "$$out"; exit 1; }

test-browser: $(READY)  ## run the tests that need Debian's Chromium (apt-get install chromium)
	TEST_BROWSER=1 $(BIN)/python -m pytest tests/browser $(ARGS)

test-prometheus: $(READY)  ## run the tests that need Debian's Prometheus (apt-get install prometheus)
	TEST_PROMETHEUS=1 $(BIN)/python -m pytest tests/prometheus $(ARGS)

test-compose: $(READY)  ## run real data through docker-compose.yml while containers are killed: needs Docker or Podman
	TEST_COMPOSE=1 $(BIN)/python -m pytest tests/compose_stack --capture no --timeout 3600 $(ARGS)

screenshots: $(READY)  ## take the screenshots of the documentation with Chromium
	mkdir -p docs/images
	TEST_BROWSER=1 SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/browser/test_pictures.py $(ARGS)

LOCATION ?= US
test-bigquery: $(READY)  ## test on BigQuery what the emulator cannot prove: PROJECT=my-project [LOCATION=EU]
	@test -n "$(PROJECT)" || { echo "name a project: make test-bigquery PROJECT=my-project"; exit 2; }
	TEST_BIGQUERY="bigquery://$(PROJECT)?location=$(LOCATION)" $(BIN)/python -m pytest tests/real_bigquery $(ARGS)

SCHEDULES ?= 1000
SEED ?= 1
LANES ?= 2
CHAOS = $(BIN)/python -m tests.faults.chaos --seed $(SEED) --lanes $(LANES)
chaos: $(READY) $(EMULATOR_READY)  ## run seeded schedules of kills, freezes and failures: [SCHEDULES=1000] [MINUTES=n] [SEED=s] [LANES=2]
	$(CHAOS) --schedules $(SCHEDULES) $(if $(MINUTES),--minutes $(MINUTES))

chaos-mutants: $(READY) $(EMULATOR_READY)  ## check that these schedules detect a tool that is broken on purpose
	$(CHAOS) --mutants

recovery: $(READY)  ## measure how long a run stands still when a worker, the broker or the ledger is lost
	TEST_RECOVERY=1 $(BIN)/python -m pytest tests/recovery $(ARGS)

SEASONS ?= 10
seasons: $(READY) $(EMULATOR_READY)  ## compare the example job with its twin in SQL, row by row, on files and on the emulator: [SEASONS=10]
	TEST_SEASONS=$(SEASONS) $(BIN)/python -m pytest tests/seasons --durations 0 $(ARGS)

CASES ?= 10000
fuzz: $(READY) $(EMULATOR_READY)  ## try random command lines, settings, files, messages and tables: [CASES=10000]
	FUZZ_CASES=$(CASES) $(BIN)/python -m pytest tests/fuzz --numprocesses 2 --dist worksteal --timeout 1800 $(ARGS)

lint: $(READY)  ## ruff (lint and format) and the layers of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

audit: $(AUDIT_READY)  ## look for known vulnerabilities of the pinned packages; says NOT AUDITED if no database responds
	@$(AUDIT)/bin/python tests/audit.py requirements.lock

types: $(READY)  ## strict type check of the three packages
	$(BIN)/basedpyright

check: lint types test  ## everything that CI checks, except the demo

bench: $(READY)  ## measure, and write benchmarks/results.json
	$(BIN)/python -m benchmarks

lock: $(READY)  ## update requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --annotation-style line --extra dev --python-version 3.11 --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --annotation-style line --python-version 3.11 --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file tests/emulator/requirements.lock tests/emulator/requirements.in

clean:  ## remove the virtual environment and the demo's data
	rm -rf $(VENV) $(EMULATOR) $(AUDIT) .backfill
