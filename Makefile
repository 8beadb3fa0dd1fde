# make demo    the whole chain on the built-in reasoner, on a CPU
# make test    the tests; `make test PYTHON=python3.12` picks the Python
# make check   format, lint, types, tests
# make docs    the guides as a site, in build/site

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check format docs

# Without PYTHON=, the .venv that is there is kept; with it, a .venv of another Python is made afresh.
version_of = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifdef PYTHON
VERSION := $(call version_of,$(PYTHON))
else
PYTHON := python3
VERSION := $(or $(call version_of,.venv/bin/python),$(call version_of,$(PYTHON)))
endif

BIN := .venv/bin
LIB := .venv/lib/python$(VERSION)
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(LIB)/.demo
	$(BIN)/python -m latent_prm.demo

test: $(LIB)/.dev
	$(BIN)/python -m pytest -m "not slow" -q -rs

test-slow: $(LIB)/.dev
	$(BIN)/python -m pytest -m slow -q -rs

check: $(LIB)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(MAKE) test

docs: $(LIB)/.dev
	$(INSTALL) -e ".[docs]"
	$(BIN)/mkdocs build

format: $(LIB)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Stamp files: installing is repeated only when what is to be installed has changed.
$(LIB)/.demo: pyproject.toml constraints.txt
	@$(venv)
	@echo "Installing latent-prm into .venv (once; torch is large) ..."
	$(INSTALL) -e ".[plot]"
	@touch $@

$(LIB)/.dev: pyproject.toml constraints.txt
	@$(venv)
	@echo "Installing latent-prm and its development tools into .venv (once; torch is large) ..."
	$(INSTALL) -e ".[dev]"
	@touch $@ $(LIB)/.demo

define venv
if [ -z "$(VERSION)" ]; then echo "$(PYTHON) does not run. Name one that does: make test PYTHON=python3.12" >&2; exit 1; fi; \
if ! [ -d $(LIB) -a -x $(BIN)/pip ]; then $(PYTHON) -m venv --clear .venv; fi
endef
