# Two commands do everything on a fresh machine:  make demo   make test
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
SOURCES = pyproject.toml $(wildcard cython/nfckpt/native/*.pyx cython/nfckpt/native/*.pxd)

.PHONY: setup demo chaos test bench fuzz clean lint ext help

help:
	@echo "make demo    real TCP and UDP through a NAT whose active node is killed again and again (add ARGS='--profile host')"
	@echo "make chaos   a pair killed in every way there is, every frame accounted for (ARGS='--kills 1000 --profile host --report chaos.html')"
	@echo "make test    lint, types and all tests"
	@echo "make bench   what a checkpoint costs on this machine, beside its limits (add ARGS=--quick)"
	@echo "make fuzz    what reads bytes from outside, fuzzed (ARGS='config --seconds 600'; guided where atheris is installed)"
	@echo "make setup   only create $(VENV) and build;   make ext   rebuild native code in place;   make clean"

setup: $(STAMP)

$(STAMP): $(SOURCES)
	@command -v cc >/dev/null || command -v gcc >/dev/null || { echo "nfckpt: no C compiler: install one (Debian: apt-get install gcc)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "nfckpt: $(PYTHON) is older than 3.10: make PYTHON=python3.x setup"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { echo "nfckpt: no Python headers: install them (Debian: apt-get install python3-dev)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "nfckpt: $(PYTHON) has no venv: install it (Debian: apt-get install python3-venv)"; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing nfckpt and what it needs into $(VENV) (about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

ext:
	@$(BIN)/python -c "from setuptools import setup; setup()" build_ext --inplace --quiet

demo: setup
	@$(BIN)/nfckpt demo $(ARGS)

chaos: setup
	@$(BIN)/nfckpt chaos $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/mypy

test: setup lint
	@$(BIN)/python -m pytest $(ARGS)

fuzz: setup
	@$(BIN)/python -m tests.fuzz $(ARGS)

bench: setup
	@$(BIN)/nfckpt bench $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f cython/nfckpt/native/*.so cython/nfckpt/native/*.c
	find . -name __pycache__ -prune -exec rm -rf {} +
