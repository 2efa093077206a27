# kernelk: `make demo` and `make test` each do everything they need on a fresh clone.
# PYTHON=/path/to/python chooses the Python (3.11 or newer), TENSORFLOW=tensorflow the build for a GPU.

# Each candidate is asked for its version, since "python3" may be anything; TensorFlow has no packages for 3.14.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& { echo $$name; break; }; done)
TENSORFLOW ?= $(if $(filter Linux-x86_64,$(shell uname -s -m | tr ' ' -)),tensorflow-cpu,tensorflow)

# Pinned to the last version whose plain package runs on any processor; newer ones may bring gigabytes for a GPU.
TORCH ?= torch==2.13.0

BIN := .venv/bin
STAMP := .venv/.setup-stamp
# What `make docs` needs, without an engine.
DOCS_STAMP := .venv/.docs-stamp
NOTEBOOK := notebooks/01_first_swap.ipynb
PYTEST := $(BIN)/python -m pytest
# So many processes share the suite, file by file; each has workers of its own, some 3 GB of memory in all.
TESTERS ?= 2

.PHONY: help setup packages demo test lint gate test-fast lab docs screenshots bench bench-clusters bench-sweeps bench-against launchers parity accuracy soak faults fuzz keras-suite keras-packages matrix release course clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP)  ## .venv with all packages, the environments of Theano and CNTK, and Keras 2
	@# An engine that can't be had is one line from kernelk itself; everything else goes on without it.
	@$(BIN)/kernelk install theano cntk keras2 || true

$(STAMP): $(DOCS_STAMP)
	@echo "installing the other packages into .venv (once, some minutes; with all engines 3 GB) ..."
	@$(BIN)/python -m pip install --quiet --editable '.[panel,notebooks]' --group dev
	@for engine in "kernelk[$(TENSORFLOW)]" "kernelk[jax]" "$(TORCH)"; do \
	  $(BIN)/python -m pip install --quiet "$$engine" || echo "$$engine can't be installed here (see above): going on without it" >&2; \
	done
	@touch $@

$(DOCS_STAMP): pyproject.toml
	@"$(or $(PYTHON),python3)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "kernelk needs Python 3.11 or newer, and $(or $(PYTHON),python3) isn't one; next: install it, then make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || "$(PYTHON)" -m venv --clear .venv
	@echo "installing kernelk, numpy and Sphinx into .venv (once, a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --editable . --group docs
	@touch $@

demo: setup  ## the main job: runs the first notebook, prints its table, writes build/first_swap.html
	@$(BIN)/python notebooks/run.py $(NOTEBOOK) --html build/first_swap.html

test: setup lint gate  ## the whole suite, after the linters and the island gate
	$(PYTEST) --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder --durations 15 \
	  -m "not soak" --ignore tests/island/test_island_gate.py

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

gate: setup  ## the island under a real Python 3.6
	$(PYTEST) --quiet tests/island/test_island_gate.py

test-fast: setup  ## about a minute: what numpy alone shows of all packages, and one worker, from a swap to its end
	$(PYTEST) --quiet --numprocesses $(TESTERS) --dist loadfile -m "not (worker or kernel or browser or slow or soak)"

lab: setup  ## JupyterLab, opened on the first notebook
	$(BIN)/python -m jupyterlab $(NOTEBOOK)

docs: $(DOCS_STAMP)  ## the documentation as a site that needs no network, build/site/index.html
	@rm -rf build/site
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . build/site
	@echo "the site: build/site/index.html"

screenshots: setup  ## the pictures of the panel in docs/images, from its tests in a browser
	KERNELK_REQUIRE=browser KERNELK_SCREENSHOTS=$(CURDIR)/docs/images $(PYTEST) --quiet tests/panel/test_panel_browser.py

bench: setup  ## measures kernelk against its targets and writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

bench-clusters: setup  ## a call on another machine against ipyparallel's own, over loopback and slower networks (as root)
	$(BIN)/python benchmarks/run.py --rounds 9 --clusters

bench-sweeps: setup  ## a sweep over four engines of a cluster against one, on an engine that sleeps
	$(BIN)/python benchmarks/sweeps.py

launchers: setup  ## engines behind ssh, in a Slurm queue and in JupyterHub, all on this machine (as root)
	@"$(or $(PYTHON),python3)" -m venv build/launchers
	@build/launchers/bin/python -m pip install --quiet "jupyterhub==6.1.1" "jupyterlab~=4.4"
	@npm install --silent --prefix build/launchers "configurable-http-proxy@5.3.0"
	PATH="$(CURDIR)/$(BIN):$(CURDIR)/build/launchers/bin:$(CURDIR)/build/launchers/node_modules/.bin:$$PATH" \
	  KERNELK_REQUIRE=netns,sshd,slurm,jupyterhub,theano,torch $(PYTEST) -m soak tests/cluster/test_launchers.py

bench-against: setup  ## BASE=path of another checkout: this kernelk and that one side by side, row by row
	@test -n "$(BASE)" || { echo "bench-against needs another checkout of kernelk; next: make bench-against BASE=path" >&2; exit 1; }
	$(BIN)/python benchmarks/against.py "$(BASE)"

parity: setup  ## every function, dtype and shape on every engine; writes docs/engines_by_function.md
	$(BIN)/python tests/parity

accuracy: setup  ## every function of floats on every engine against mpmath, in ulps; writes docs/accuracy.md
	$(BIN)/python tests/accuracy

soak: setup  ## the long-running tests and jobs (hours; goes on where it was stopped)
	$(BIN)/python tests/soak/run.py

faults: setup  ## random programs with 10,000 faults in them, checked against a model (hours; goes on where it was stopped)
	$(BIN)/python tests/faults/scale/run.py --faults 9000 --engines light kernel
	$(BIN)/python tests/faults/scale/run.py --faults 2000 --engines kept-light light kernel
	$(BIN)/python tests/faults/scale/run.py --faults 500 --engines checked-light light kernel
	for engine in tensorflow theano cntk jax torch; do for policy in "" kept- checked-; do \
	  $(BIN)/python tests/faults/scale/run.py --faults 220 --engines $$policy$$engine kernel || exit 1; \
	done; done

fuzz: setup  ## the readers of files with atheris: SECONDS=600 for each, READERS="npz keras_json" for some
	@$(BIN)/python -m pip install --quiet --upgrade --target build/fuzz "atheris==3.0.0"
	PYTHONPATH=build/fuzz $(BIN)/python tools/fuzz.py --seconds $(or $(SECONDS),600) $(READERS)

keras-suite: setup  ## Keras 2.3.1's own tests on each engine (hours; RUN="theano --files recurrent" for some)
	$(BIN)/python tests/keras_suite/run.py $(RUN)

keras-packages: setup  ## the own tests of packages for old Keras, on two engines (fetches them from the package index)
	$(BIN)/python tests/keras_suite/packages.py

course: setup  ## the course's units, each with all engines, with JAX, and with numpy alone
	$(PYTEST) -m "soak or not soak" tests/project/test_course.py

release: $(STAMP)  ## builds the sdist and the wheel, build/release, and tries each in a bare environment
	$(BIN)/python tests/matrix/release.py

matrix: $(STAMP)  ## the fast tests with the lowest and highest versions of what kernelk needs, Python 3.11 to 3.13
	$(BIN)/python tests/matrix/run.py $(RUN)

clean:  ## removes what was built; .venv and the engines' environments stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis benchmarks/__pycache__ notebooks/.ipynb_checkpoints
	find kernelk tests notebooks -name __pycache__ -prune -exec rm -rf {} +
