.PHONY: help run test test-long check house format bench bench-peers clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: ## start a hub with the demo in it
	@scripts/setup
	@.venv/bin/wayside serve --demo

# Most tests wait for processes that they start: four files at a time keep two cores busy, and those that take longest
# come first. Compiled beforehand as hundreds of processes import it, also where Python is told to write no bytecode.
test: ## run all tests
	@scripts/setup
	@scripts/test-tools
	@.venv/bin/python -m compileall -q src tests
	@.venv/bin/pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

test-long: ## kill hubs, workers and members for long; goes on where it was (ROUNDS=5)
	@scripts/setup
	@scripts/test-long

check: ## formatting, lint, types and import contracts
	@scripts/setup
	@.venv/bin/ruff format --check
	@.venv/bin/ruff check
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo

house: ## count and draw what the source is made of; ARGS="--base REV" for another revision beside it, "--svg FILE"
	@scripts/setup
	@.venv/bin/python -m scripts.house $(ARGS)

format: ## format the code and fix what ruff can fix
	@scripts/setup
	@.venv/bin/ruff check --fix-only
	@.venv/bin/ruff format

bench: ## measure Wayside
	@scripts/setup bench
	@.venv/bin/python -m bench

bench-peers: ## measure Wayside beside its peers
	@scripts/setup bench
	@bench/peers

clean: ## remove everything that was built
	@rm -rf .venv build dist tests/js/node_modules
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
