# Every target sets up what it needs and leaves alone what is there already: see scripts/tasks.sh.
.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint docs setup clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## distil Whisper on real speech, compare, serve, transcribe (SPEECH=FOLDER: your own speech)
	@bash scripts/tasks.sh demo

test: ## run the tests: real models and a real Ray cluster on this machine
	@bash scripts/tasks.sh test

test-all: ## all tests, as CI runs them: also kills, several nodes, environments, studies
	@bash scripts/tasks.sh test-all

lint: ## ruff, ruff format and pyright strict, as pre-commit and CI run them
	@bash scripts/tasks.sh lint

docs: ## build the documentation as a site, into site/
	@bash scripts/tasks.sh docs

setup: ## only install: everything that the demo, the tests and lint need, into .venv
	@bash scripts/tasks.sh setup

clean: ## remove .venv and the tools' caches (runs/ and the downloads stay)
	@bash scripts/tasks.sh clean
