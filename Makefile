# The one place that knows how to install, run and check this project. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# Tests at a time. Most wait for servers and databases of their own, so a few more than there are cores.
JOBS ?= 3

.DEFAULT_GOAL := help
.PHONY: help install run test test-all check lint format types imports migrations-check lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

$(VENV)/.server: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.tests: $(VENV)/.server tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

install: $(VENV)/.server ## make the virtual environment with what a server needs

# The embedded database is migrated when it is missing or older than a migration; any other one each time.
var/.migrated: $(VENV)/.server $(wildcard relay/migrations/*.py)
	@mkdir -p var
	$(BIN)/python manage.py migrate --verbosity 0
	@touch $@

run: $(VENV)/.server $(if $(DATABASE_URL)$(RELAY_VAR_DIR),migrate,var/.migrated) ## serve on http://127.0.0.1:8001 (PORT)
	exec $(BIN)/daphne lemcloud.asgi:application

.PHONY: migrate
migrate: $(VENV)/.server
	$(BIN)/python manage.py migrate --verbosity 0

test: $(VENV)/.tests ## the tests that need only Python and make
	$(BIN)/python -m pytest -m "not system and not alone" --numprocesses $(JOBS) --dist worksteal $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m alone $(PYTEST_ARGS) || [ $$? -eq 5 ]  # 5: PYTEST_ARGS names none of these

$(VENV)/.bench: $(VENV)/.tests tests/benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/benchmarks/requirements.txt
	@touch $@

.PHONY: bench
bench: $(VENV)/.bench ## measure the relay beside other relays (BENCH_ARGS="--quick --only NAME,NAME --work NAME,NAME")
	@$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

.PHONY: bench-admin
bench-admin: $(VENV)/.tests ## time the dashboard's queries on PostgreSQL with a million sessions
	@$(BIN)/python -m tests.admin.measure

.PHONY: cluster
cluster: $(VENV)/.tests ## the whole relay on this machine: Caddy, a node per core, Valkey and PostgreSQL, until Ctrl-C
	@$(BIN)/python -m tests.cluster

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.tests ## put the code into the project's format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

types: $(VENV)/.tests
	$(BIN)/mypy

imports: $(VENV)/.tests
	$(BIN)/lint-imports

migrations-check: $(VENV)/.tests
	$(BIN)/python manage.py makemigrations --check --dry-run

lock: $(VENV)/.tests ## compile the two requirement files from pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make lock" --extra client pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make lock" -c requirements.txt --extra test pyproject.toml -o tests/requirements.txt

# Branch coverage of the modules without I/O, which are tested to the last branch.
PURE := rules client.noise client.patience

coverage: $(VENV)/.tests
	$(BIN)/python -m pytest --quiet --numprocesses $(JOBS) tests/unit tests/test_frames.py $(PURE:%=--cov=relay.%) --cov-branch \
		--cov-report=term-missing --cov-fail-under=100

check: lint types imports migrations-check coverage test ## all that has to be green before a commit

var/.packages: .ci/packages
	@mkdir -p var
	sh .ci/packages
	@touch $@

test-all: $(VENV)/.tests var/.packages ## the tests that need Debian's packages, which it installs (as root)
	$(BIN)/python -m pytest -m system --numprocesses $(JOBS) --dist worksteal $(PYTEST_ARGS)

clean: ## remove what the other targets made, runtime data excepted
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage *.egg-info
.PHONY: fuzz
fuzz: $(VENV)/.tests ## fuzz the frame forwarder against the websockets library (FUZZ_SECONDS, 60)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris>=3"
	@mkdir -p var/fuzz
	$(BIN)/python -m tests.fuzz.fuzz_frames var/fuzz tests/fuzz/corpus -artifact_prefix=var/fuzz/crash- \
		-max_len=400 -max_total_time=$(or $(FUZZ_SECONDS),60)

.PHONY: mutants mutants-turn
mutants: $(VENV)/.tests ## put faults into the code, one at a time: the tests have to see them (MUTANTS_ARGS="frames frames-3")
	@$(BIN)/python -m tests.mutants --jobs $(JOBS) $(MUTANTS_ARGS)

mutants-turn: $(VENV)/.tests ## twenty of those, others with each commit
	@$(BIN)/python -m tests.mutants --jobs $(JOBS) --turn $$(git rev-list --count HEAD)

.PHONY: ends
ends: $(VENV)/.tests ## end busy sessions in every way over every path, a hundred times each (ENDS_ARGS="--path spliced --rounds 9")
	@$(BIN)/python -m tests.ends $(ENDS_ARGS)
