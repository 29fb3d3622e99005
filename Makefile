# Every target does its own set-up; a second run starts in seconds.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
PYTEST_ARGS ?=

.PHONY: help demo demo-kills test test-versions prove-reconcile prove-dualwrite chaos chaos-matrix chaos-mutants model
.PHONY: bench-reconcile bench-final-compare bench-dualwrite bench-switch
.PHONY: lint format lock clean bootstrap temporal

help: ## show this list
	@echo "cutover: the tables of a monolithic PostgreSQL database into one database per service"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

demo: temporal ## a whole migration of the example under live traffic, with a report at the end
	@$(PYTHON) -m examples.ai_trader.demo

demo-kills: temporal ## the same, with kill -9 of workers and of a traffic process
	@$(PYTHON) -m examples.ai_trader.demo --kills

test: temporal ## all tests, on real servers (PYTEST_ARGS="tests/plan -x" for some of them)
	@$(PYTHON) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

bench-reconcile: bootstrap ## what a comparison costs, beside the floor and other tools (ROWS=5000000 ROUNDS=3 TOOLS=0)
	@$(PYTHON) -m bench.reconcile

bench-dualwrite: bootstrap ## what a write costs at each level, relay and first copy (ROUNDS=5 WRITES=400 SECONDS=3 ROWS=5000000)
	@$(PYTHON) -m bench.dualwrite

bench-switch: bootstrap ## how long a switch keeps writes out, beside its floor (CYCLES=200 WRITERS=10 THINK_MS=0 ROWS=200)
	@$(PYTHON) -m bench.switch

bench-final-compare: bootstrap ## the final compare inside the fence at 1 M and at 20 M rows (ROWS_SMALL, ROWS_LARGE)
	@$(PYTHON) -m bench.final_compare

test-versions: bootstrap ## switches on every version of PostgreSQL, comparisons between every two; half an hour
	@CUTOVER_PROVE_VERSIONS=all $(PYTHON) -m pytest $(PYTEST_ARGS) $(addsuffix /test_versions.py,$(addprefix tests/,preflight switch reconcile)) \
		tests/switch/test_turn_kills.py

prove-reconcile: bootstrap ## the proofs of the comparison with many seeds and full sizes, about half an hour
	@CUTOVER_PROVE_SEEDS=10 CUTOVER_PROVE_SIZES=full CUTOVER_PROVE_LIVE_SECONDS=60 $(PYTHON) -m pytest $(PYTEST_ARGS) \
		$(addprefix tests/reconcile/test_,$(addsuffix .py,corruption live kills sizes mutants collations bad_input))

prove-dualwrite: bootstrap ## takes each remedy of dual-write out and requires its test to fail, some minutes
	@$(PYTHON) -m scripts.mutants_dualwrite

chaos: bootstrap ## faults of all kinds over repeated switches under load, until the time is over (SEED MINUTES=60 RUN)
	@$(PYTHON) -m chaos.campaign

chaos-matrix: bootstrap ## a fault at every point of every protocol, in switches under traffic (SEED CELLS=500 FULL=1 PART=1/3 RUN PARALLEL=3)
	@$(PYTHON) -m chaos.matrix

model: bootstrap ## every state of a small model of the switch, then its mutants, a minute (TRACES=1 prints counterexamples)
	@$(PYTHON) -m chaos.model $(if $(TRACES),--traces)

chaos-mutants: bootstrap ## naive variants of the product, each of which a check has to catch, about half an hour
	@$(PYTHON) -m chaos.mutants

lint: bootstrap ## ruff, mypy --strict, import-linter, file lengths, compose file
	@scripts/lint

format: bootstrap ## write the formatting that lint asks for
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

lock: bootstrap ## write requirements/*.txt anew from requirements/*.in
	@scripts/lock

clean: ## stop the development stack, delete its data, the virtual environment and caches
	@if [ -x .venv/bin/cutover ]; then $(PYTHON) -c 'from cutover.cli.dev import app; app()' reset --yes; fi
	@rm -rf .venv .cutover .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean"

bootstrap:
	@scripts/bootstrap

temporal: bootstrap
	@$(PYTHON) -m cutover.devstack.temporal --ensure >/dev/null
