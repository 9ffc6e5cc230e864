# The verbs, the same by hand and in CI. Each does its own set-up, once, in .venv/.
#   make test BASE_PYTHON=python3.12         another Python for .venv
#   make test PYTHON=path/to/env/bin/python  an environment of your own, in which the package is
#                                            installed editable; no set-up is done

BASE_PYTHON ?= python3

ifeq ($(origin PYTHON), undefined)
PYTHON := .venv/bin/python
READY := .venv/.installed
endif

# Each test process computes in one thread: two of them with a thread per core fight over the cores. It runs whole files,
# so that what the tests of a file share is made once.
TEST_PROCESSES ?= 2
TREE := build/tree
# 3.11.5 is the first Python that all pinned tools run on.
LOCK = $(PYTHON) -m uv pip compile --constraint constraints.txt --universal --python-version 3.11.5 \
	--generate-hashes --no-header --no-annotate --quiet
VERSION = $(shell $(PYTHON) -c "import var_hf; print(var_hf.__version__)")

.DEFAULT_GOAL := help
.PHONY: help install install-locked lock style check test fuzz demo emoji-model emoji-128-model docs dist

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(READY)  ## create .venv/ and install the package editable, with every extra

# The hashes are those of the files that the package index holds for every platform. pip refuses any other file.
install-locked:  ## create .venv/ as install does, from files with the hashes in requirements-dev.lock only
	$(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --require-hashes --requirement requirements-dev.lock
	.venv/bin/python -m pip install --no-deps --no-build-isolation --editable .
	touch .venv/.installed

lock: $(READY)  ## write requirements.lock and requirements-dev.lock anew from setup.cfg and constraints.txt; needs the network
	$(LOCK) --extra demo --extra train --extra quantization --extra evaluation --output-file requirements.lock setup.cfg
	$(LOCK) --extra dev --output-file requirements-dev.lock setup.cfg

style: $(READY)  ## format the code and mend what ruff can mend
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

check: $(READY)  ## lint, types and import layers; changes nothing
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(abspath $(dir $(PYTHON)))/codespell
	rm -rf build
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --target $(TREE) .
	cd $(TREE) && $(abspath $(PYTHON)) -m mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache --package var_hf
	cd $(TREE) && $(abspath $(dir $(PYTHON)))/lint-imports --no-logo --no-cache --config $(CURDIR)/pyproject.toml

test: $(READY)  ## run the tests (ARGS="-k name" passes options to pytest)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(ARGS)

fuzz: $(READY)  ## fuzz a reader (TARGET=pth, image, npz or config; SECONDS=600), needs var-hf[fuzz]
	OMP_NUM_THREADS=1 $(PYTHON) tests/fuzz/fuzz.py $(or $(TARGET),pth) --seconds $(or $(SECONDS),600)

demo: $(READY)  ## draw a first image
	$(PYTHON) examples/first_image.py

emoji-model: $(READY)  ## train var-emoji-64 from nothing: hours
	PATH="$(abspath $(dir $(PYTHON))):$$PATH" sh examples/emoji/make_model.sh

emoji-128-model: $(READY)  ## train var-emoji-128 from nothing: half a day (OUT=folder puts data and checkpoints there)
	PATH="$(abspath $(dir $(PYTHON))):$$PATH" OUT="$(OUT)" sh examples/emoji/make_model.sh 128

docs: $(READY)  ## build the documentation into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

dist: $(READY)  ## build sdist, wheel and their list of components (SBOM, CycloneDX) into dist/, and check them
	rm -rf build dist
	$(PYTHON) -m build --no-isolation --outdir dist .
	$(PYTHON) -m twine check --strict dist/*
	mkdir -p build
	printf '[project]\nname = "var-hf"\nversion = "%s"\nlicense = "MIT"\n' $(VERSION) > build/sbom.toml
	$(PYTHON) -m cyclonedx_py requirements requirements.lock --pyproject build/sbom.toml --mc-type library \
		--output-reproducible --short-PURLs --output-file dist/var_hf-$(VERSION).cdx.json

# Repeated when what is to be installed changes, and not otherwise.
.venv/.installed: setup.cfg constraints.txt
	$(BASE_PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and f'var-hf needs Python 3.11 or newer, $(BASE_PYTHON) is {sys.version.split()[0]}: make BASE_PYTHON=python3.11 ...')"
	$(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --constraint constraints.txt --editable ".[dev]"
	touch $@
