# Every target sets up what it needs: a virtual environment in .venv with the tested versions.
PYTHON ?= python3
PARAMS ?= params/quick.yaml
SET ?=
MINUTES ?= 9
FOLDER ?= build/panel
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: address help setup reproduce results test test-all lint site lab notebooks bench load panel pack binder fuzz licences lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PARAMS=params/FILE.yaml chooses the experiment of reproduce and results (default $(PARAMS))"
	@echo "  SET='-p NAME VALUE' sets a parameter over the file, e.g. SET='-p corpus_path ../imdb'"

# PyTorch comes in builds for processors and for each CUDA, from several indices: its version is locked, its hash is not.
# Whatever another system needs beside the lock comes with the last line.
setup: .venv/installed ## make .venv and install what requirements.lock holds, hashes compared

.venv/installed: requirements.txt requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --no-deps $$(grep '^torch==' requirements.txt)
	$(PIP) --no-deps --require-hashes -r requirements.lock
	$(PIP) --no-build-isolation -e '.[ray,browser,binder,test,docs,lint]'
	touch $@

reproduce: setup ## run all notebooks on PARAMS: table, verdicts and an HTML report; run again to continue
	$(BIN)/python -m fairlm_utils reproduce $(PARAMS) $(SET)

results: setup ## as reproduce, and write the small tables to results/, to be committed
	$(BIN)/python -m fairlm_utils reproduce $(PARAMS) $(SET) --save-results results/$(basename $(notdir $(PARAMS)))

# A worker takes one file after another, the longest first (tests/conftest.py).
# Buffers given back to the system at every step are faulted in again: kept, as in runs (experiment/sweep.py), less time is taken.
test notebooks lab: export MALLOC_MMAP_MAX_ = 0
test notebooks lab: export MALLOC_TRIM_THRESHOLD_ = 17179869184
test: setup ## every test and notebook, in WORKERS=2 processes, but for long ones that passed on the same inputs
	$(BIN)/python -m pytest -n $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder --durations 25 $(ALL) \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout=600 tests fairlm_utils $(NOTEBOOKS)

test-all: ALL = --all
test-all: test ## test, the long ones too; what passed is recorded in tests/passed.json

lint: setup ## check style of code and notebooks, types, imports and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check fairlm_utils tests docs
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

site: setup ## a static site in site/: README, notebooks with live charts, results, API; open site/index.html, without a network
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . site

lab: setup ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. notebooks

notebooks: setup ## execute the committed notebooks in place, at default parameters
	cd notebooks && TQDM_DISABLE=1 ../$(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=900 $(notdir $(NOTEBOOKS))

load: setup ## time and memory of many runs and of 10^9 tokens, and how they grow
	$(BIN)/python -m tests.load

bench: setup ## measure the promised ratios of speed, both sides in one run; PANEL=params/paper/FILE.yaml: the speed of a panel
	$(BIN)/python -m tests.bench $(if $(IMDB),--imdb $(IMDB)) $(if $(PANEL),--panel $(PANEL))

panel pack: PARAMS = params/paper/openelm-270m-imdb.yaml

panel: setup ## a panel of the paper on one GPU, λ = 0 and 1: stops after MINUTES=9 at a checkpoint, run again to go on
	TQDM_DISABLE=1 $(BIN)/python -m fairlm_utils panel $(PARAMS) --minutes $(MINUTES) $(SET)

pack: setup ## FOLDER=build/panel, at most 64 MiB, with which a panel runs where there are no documents
	$(BIN)/python -m fairlm_utils pack $(PARAMS) $(FOLDER) $(SET)

binder: setup ## replay the Binder image in a fresh environment, and the memory a notebook needs in it
	$(BIN)/python -m tests.binder $(BINDER_NOTEBOOKS) $(SET)

address: ## URL=https://github.com/ACCOUNT/fairlm, set where the repository lies: Binder's badge, pyproject.toml, CITATION.cff
	$(PYTHON) binder/address.py "$(URL)"

fuzz: setup ## kill and fuzz for long: KILLS=200 random kills, SECONDS=300 a file format, property tests with many examples
	$(PIP) --no-deps --require-hashes -r tests/fuzz.lock
	$(BIN)/python -m tests.kill $(or $(KILLS),200) $(or $(SEED),1) "$$(mktemp -d)"
	for target in $$($(BIN)/python -m tests.fuzz_files); do \
	  HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz_files $$target -max_total_time=$(or $(SECONDS),300) -max_len=4096 || exit 1; done
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest tests/test_fuzz.py tests/test_metrics.py tests/test_load.py

licences: setup ## renew LICENCES.md, the licences of all dependencies; fails for one that [tool.pip-licenses] does not allow
	$(BIN)/pip-licenses --output-file LICENCES.md

lock: setup ## lock the installed versions: requirements.lock with hashes, binder/constraints.txt without
	$(PIP) uv
	$(BIN)/python -m pip freeze --all --exclude pip --exclude uv --exclude atheris --exclude-editable | sed "/ @ /d; s/+cpu$$//" > binder/constraints.txt
	grep -v '^torch==' binder/constraints.txt | $(BIN)/uv pip compile - --quiet --no-deps --generate-hashes --no-header \
	  --no-annotate --python-version "$$($(BIN)/python -c 'import platform; print(platform.python_version())')" -o requirements.lock

clean: ## remove everything generated, finished runs included
	rm -rf runs .pytest_cache .ruff_cache
