# Everything runs in .venv, which is created on first use; only python3 and make are needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-all quick-tests lint bench clean

help:
	@echo "make demo              preprocess, train, predict and evaluate on the bundled clips"
	@echo "make demo VIDEO=a.mp4  the same, then predict your own clip with the demo's model"
	@echo "make test              lint, types and quick tests"
	@echo "make test-all          also slow tests: killed processes, torchrun, Ray, the browser"
	@echo "make lint              ruff and mypy only"
	@echo "make bench             run the benchmarks, which write benchmarks/results/"
	@echo "make clean             remove the output of the demo"

# VIDEO reaches the script through the environment, so that no shell ever reads the file's name.
demo: .venv/.demo
	@$(BIN)/python benchmarks/run_demo.py

# Lint and types run beside the tests, because mypy without its cache takes a minute on one core.
test:
	@$(MAKE) --no-print-directory --jobs=2 lint quick-tests

# Test files run in parallel processes of one thread each.
quick-tests: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

# Slow tests run one after the other: they start clusters and kill processes.
test-all: test
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.dev demo
	$(BIN)/python benchmarks/bench_preprocessing.py
	$(BIN)/python benchmarks/bench_growth.py
	$(BIN)/python benchmarks/bench_speech.py
	$(BIN)/python benchmarks/bench_training.py
	$(BIN)/python benchmarks/bench_prediction.py
	$(BIN)/python benchmarks/bench_fast_cpu.py
	$(BIN)/python benchmarks/bench_report.py

clean:
	rm -rf demo

$(BIN)/python:
	$(PYTHON) -m venv .venv

# Stamps of the installations, which are renewed when setup.cfg changes.
.venv/.demo: setup.cfg | $(BIN)/python
	@echo "installing into .venv (a few minutes, about 6 GB: PyTorch) ..."
	$(INSTALL) -e ".[offline-models,report]"
	@touch $@

.venv/.dev: setup.cfg | $(BIN)/python
	@echo "installing into .venv (a few minutes, about 6 GB: PyTorch) ..."
	$(INSTALL) -e ".[dev,offline-models,fast-asr,ray,tensorboard,report,parquet]"
	@touch $@ .venv/.demo
