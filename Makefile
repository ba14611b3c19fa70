# The commands of this project. `make demo` and `make test` need nothing but Linux, make and Python 3.11 or later.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
SETUP := $(VENV)/.installed

.PHONY: demo test quick soak fuzz bench setup lock clean

demo: setup  ## a guest migrates between two daemons on loopback, and the report is shown
	$(RUN)/pagefire demo $(ARGS)

quick: setup  ## the inner loop: style, types and the tests that start no process, on every CPU (up to four)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/pytest -q -m "not e2e and not fuzz and not soak" -x --hypothesis-profile=quick --numprocesses auto --maxprocesses 4

test: setup  ## everything, at short counts
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/pytest -m "not soak and not alone" --numprocesses auto --maxprocesses 2 --dist worksteal
	$(RUN)/pytest -m "not soak and alone"

soak: setup  ## the full counts of every proof; writes results/soak-DATE.json
	$(RUN)/python -m pagefire.scripts.soak $(ARGS)

fuzz: setup  ## a million hostile inputs for what reads a peer's bytes, guided by coverage; ten minutes on one CPU
	$(RUN)/python -m tests.fuzz $(ARGS)

bench: setup  ## every figure against a reference taken in the same run; writes results/bench-DATE/
	$(RUN)/pagefire bench --report results/bench-$$(date +%Y%m%d-%H%M%S) $(ARGS)

setup: $(SETUP)

$(SETUP): requirements.lock pyproject.toml
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "pagefire: cannot make $(VENV): it needs Python 3.11 or later with the venv module (Debian: apt install python3-venv)"; exit 1; }
	@$(RUN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "pagefire: $$($(RUN)/python --version) is too old: Python 3.11 or later is needed (make PYTHON=python3.12 ...)"; exit 1; }
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

lock:  ## pin the newest versions that pyproject.toml admits (needs uv)
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra dev --extra fuzz \
	  --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
