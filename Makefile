# `make demo` and `make test` need Python 3.11 or later and make, nothing else. `make help` lists the rest.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= auto
ARGS    ?=

BIN     := $(VENV)/bin
CHECKED := $(wildcard async_task_manager benchmarks examples tests tools)
CORE    := async_task_manager/*.py,async_task_manager/strategies/*

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export NO_MKDOCS_2_WARNING := 1

say = @printf '\n== %s\n' '$(1)'

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo browser test test-all bench bench-quick soak fix clean pictures \
        format lint mypy pyright imports docs wheel pytest coverage

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## send a few hundred requests through two rate-limited providers
	$(BIN)/python examples/demo.py

browser:  ## install Debian's Chromium, for the tests of the dashboard (as root)
	@command -v chromium >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; }

test: format lint mypy pyright imports docs wheel coverage  ## everything that guards the project
	$(call say,all checks passed)

test-all:  ## the tests on each of Python 3.11, 3.12 and 3.13 that is present
	@ran= failed=; \
	for version in 3.11 3.12 3.13; do \
	    found=; \
	    for python in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python; do \
	        if "$$python" -c '' 2>/dev/null; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then printf '\n== Python %s is not here: skipped\n' $$version; continue; fi; \
	    printf '\n== Python %s\n' $$version; \
	    ran="$$ran $$version"; \
	    $(MAKE) --no-print-directory pytest PYTHON="$$found" VENV=.venv-$$version \
	        || failed="$$failed $$version"; \
	done; \
	printf '\n== ran on:%s; failed on:%s\n' "$${ran:- none}" "$${failed:- none}"; \
	[ -n "$$ran" ] && [ -z "$$failed" ]

bench: $(VENV)/.bench  ## the benchmark tables
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.bench  ## the same in a minute
	$(BIN)/python -m benchmarks --quick

soak: $(VENV)/.dev  ## the tests that take long
	HYPOTHESIS_PROFILE=soak $(BIN)/pytest -n $(WORKERS) -m soak -o faulthandler_timeout=0 $(ARGS)

fix: $(VENV)/.dev  ## format the code, and repair what ruff can
	$(BIN)/ruff check --quiet --fix --exit-zero .
	$(BIN)/ruff format .

clean:  ## remove all that builds and checks leave behind, except .venv
	rm -rf build dist site .coverage .coverage.* .demo .venv-*
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# The parts of `make test`, in its order: what is quick comes first.

format: $(VENV)/.dev
	$(call say,ruff format)
	@$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(call say,ruff check)
	@$(BIN)/ruff check .

mypy: $(VENV)/.dev
	$(call say,mypy --strict)
	@$(BIN)/mypy --strict $(CHECKED)

pyright: $(VENV)/.dev
	$(call say,pyright on the public types)
	@$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(VENV)/.dev
	$(call say,import-linter: the floors of the house)
	@$(BIN)/lint-imports --no-logo

pictures: $(VENV)/.dev  ## draw the pictures of the documentation anew
	$(BIN)/python tools/draw_simulations.py
	$(BIN)/python tools/draw_runs.py

docs: $(VENV)/.dev  ## build the documentation into site/
	$(call say,mkdocs build --strict)
	@$(BIN)/mkdocs build --quiet --strict
	@! grep -rnE '<(script|link|img|iframe)[^>]* (src|href)="?(https?:)?//' --include='*.html' site \
	    || { echo 'a page loads something from another host'; exit 1; }

wheel: $(VENV)/.dev
	$(call say,the wheel installed elsewhere and imported with no extras)
	@rm -rf build/wheel && mkdir -p build
	@$(BIN)/python -m build --no-isolation --outdir build/wheel/dist . >build/wheel.log 2>&1 \
	    || { cat build/wheel.log; exit 1; }
	@$(BIN)/python -m venv --without-pip build/wheel/venv
	@$(BIN)/pip --python build/wheel/venv/bin/python install --quiet build/wheel/dist/*.whl
	@cd / && '$(CURDIR)/build/wheel/venv/bin/python' -I '$(CURDIR)/tools/check_wheel.py'

pytest: $(VENV)/.dev  ## the tests alone; ARGS="-k window" chooses some
	$(call say,pytest)
	@$(BIN)/pytest -n $(WORKERS) $(ARGS)

coverage: $(VENV)/.dev
	$(call say,pytest under branch coverage)
	@$(BIN)/pytest -n $(WORKERS) --cov --cov-report= $(ARGS)
	$(call say,branch coverage of the core: 100 %)
	@$(BIN)/coverage report --include='$(CORE)' --skip-covered --show-missing --fail-under=100

# Installing happens once, and again when pyproject.toml changes.

$(VENV)/.demo: pyproject.toml | $(BIN)/pip
	$(call say,installing what the demo needs)
	$(BIN)/pip install --quiet --editable '.[cli]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/pip
	$(call say,installing what the checks need)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $(VENV)/.demo $@

$(VENV)/.bench: pyproject.toml | $(BIN)/pip
	$(call say,installing the peers that the benchmarks measure)
	$(BIN)/pip install --quiet --editable '.[dev,bench]'
	@touch $(VENV)/.demo $(VENV)/.dev $@

$(BIN)/pip:
	@command -v '$(PYTHON)' >/dev/null \
	    || { echo 'there is no $(PYTHON) here: make PYTHON=/path/to/python3.11 ...'; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is \
	needed, and $(PYTHON) is %s: make PYTHON=/path/to/python3.11 ..." % sys.version.split()[0])'
	$(call say,making $(VENV))
	'$(PYTHON)' -m venv '$(VENV)'
