# Everything a developer runs; `make` prints this list. Tools live in .venv, made on first use.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
BIN := .venv/bin
FAST := -m "not postgres and not e2e and not ui and not slow"
IMAGE ?= gatepass:dev
CONTAINER ?= $(firstword $(foreach tool,docker buildah,$(if $(shell command -v $(tool)),$(tool))))

help: ## this list
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-18s %s\n' "$$name" "$$text"; done

demo: .venv/.demo ## held call, from nothing to a decision, in two minutes (ARGS=--once: without a person)
	@$(BIN)/gatepass demo $(ARGS)

test: clients ## the whole suite (T=tests/unit/test_x.py for a part, N=4 for four processes)
	@$(BIN)/pytest $(if $(N),-n $(N)) $(T)

check: .venv/.test ## format, lint, types, import contracts, fast tests: under a minute
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/djlint --quiet --lint web/templates
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo > .venv/imports.log 2>&1 || { cat .venv/imports.log; exit 1; }
	@$(BIN)/pytest -q -n auto $(FAST) tests/unit tests/contracts

format: .venv/.test ## write the code the way check wants it
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

e2e: clients ## real server processes and the official clients
	@$(BIN)/pytest tests/e2e tests/clients $(T)

clients: .venv/.test ## the clients, each in an environment of its own (Node.js for some of them)
	@$(BIN)/python -m tests.clients.environments

compatibility: clients ## play every client, and rewrite docs/compatibility.md with what was seen
	@RECORD=1 $(BIN)/pytest -q tests/clients
	@$(BIN)/python docs/generate.py

ui: clients ## pages in a real Chromium, with accessibility checks
	@$(BIN)/pytest tests/ui $(T)

cov: .venv/.test ## coverage of the fast tests: htmlcov/index.html
	@$(BIN)/pytest -q $(FAST) --cov --cov-report=term:skip-covered --cov-report=html tests/unit tests/integration

bench: .venv/.test ## CPU per request beside an nginx reverse proxy (ARGS=--quick for a short look)
	@$(BIN)/python tests/bench/run.py $(ARGS)

SECONDS ?= 60
fuzz: .venv/.test ## hostile bodies, streams, rounds and raw HTTP for SECONDS=60 (SEED=1: other ones)
	@$(BIN)/python -m tests.fuzz.run $(SECONDS) $(SEED)

torture: .venv/.test ## long: every kill point, storms of approvals, the model, thousands of holds (KILLS=1000 APPROVALS=10000 EXAMPLES=2000 HOLDS=5000 SEED=1)
	@KILLS=$(or $(KILLS),1000) APPROVALS=$(or $(APPROVALS),10000) EXAMPLES=$(or $(EXAMPLES),2000) HOLDS=$(or $(HOLDS),5000) $(BIN)/pytest -q -s tests/model tests/torture tests/e2e/test_many_holds.py $(T)

guards: .venv/.test ## take every guard away, one by one, and see a test turn red (W="word" for some, JOBS=2)
	@JOBS=$(or $(JOBS),2) $(BIN)/python -m tests.guards $(W)

image: ## container image (IMAGE=name:tag), with docker or buildah
	@test -n "$(CONTAINER)" || { echo "docker or buildah is needed"; exit 2; }
	@$(CONTAINER) build --tag $(IMAGE) .

chart: .venv/.test ## lint, render and validate the chart; package it into dist/
	@$(BIN)/pytest -q tests/contracts/test_chart.py
	@$(BIN)/python -c 'import helm_python; print(helm_python.package("helm", destination="dist"))'

docs: .venv/.test ## rewrite the generated parts of docs/
	@$(BIN)/python docs/generate.py

run: .venv/.demo ## gatepass serve with the settings of the environment
	@$(BIN)/gatepass serve

dev: .venv/.test ## the same, saying more
	@GATEPASS_LOG_LEVEL=debug $(BIN)/gatepass serve

migrate: .venv/.demo ## bring the configured database to the current schema
	@$(BIN)/gatepass migrate

migration: .venv/.test ## draft a migration from the changed tables (M="add a column")
	@test -n "$(M)" || { echo 'say what it does: make migration M="add a column"'; exit 2; }
	@$(BIN)/python migrations/draft.py "$(M)"

messages: .venv/.test ## collect the texts of pages and bring the translations up to date
	@$(BIN)/pybabel --quiet extract -F web/locales/babel.cfg --no-location --sort-output --project gatepass -o .venv/messages.pot web
	@$(BIN)/pybabel --quiet update -D web -i .venv/messages.pot -d web/locales --no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date

lock: ## resolve requirements/*.in again (needs uv)
	@command -v uv >/dev/null || { echo "uv is needed: https://docs.astral.sh/uv"; exit 2; }
	@for name in build base demo test; do uv pip compile requirements/$$name.in --quiet --upgrade --generate-hashes --universal --python-version 3.11 --no-header --no-annotate -o requirements/$$name.lock; done
	@for name in openai-1 openai-2 openai-3 agents; do uv pip compile requirements/clients/$$name.in --quiet --upgrade --generate-hashes --universal --python-version 3.11 --no-header --no-annotate -o requirements/clients/$$name.lock; done
	@for name in node-6 node-7 node-ai oidc-provider; do (cd tests/clients/$$name && rm -f package-lock.json && npm install --package-lock-only --silent) || exit 1; done

clean: ## remove what can be made again (keeps data/)
	@rm -rf .venv build dist htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
	@find gateway web tests migrations -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.demo: requirements/demo.lock
	@sh requirements/install.sh demo

# The test set holds the demo set, so that one environment serves both.
.venv/.test: requirements/test.lock
	@sh requirements/install.sh test && touch .venv/.demo

.PHONY: help demo test torture guards check format e2e clients compatibility ui cov bench fuzz image chart docs run dev migrate migration messages lock clean
