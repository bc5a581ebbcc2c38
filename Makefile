# Everything runs in .venv, which is made on first use; python3 and make are all that is needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-all lint types bench clean

help:
	@echo "make demo              the whole job on the bundled clips: preprocess, train, predict, evaluate"
	@echo "make demo VIDEO=a.mp4  the same, then the demo's model on your own clip"
	@echo "make test              lint, types, and the tests that take seconds"
	@echo "make test-all          the slow tests as well: kills, several processes, Ray, the browser"
	@echo "make lint              ruff and mypy alone"
	@echo "make bench             benchmarks; results go to benchmarks/results"
	@echo "make clean             remove what the demo made"

# VIDEO reaches the script through the environment, so that no shell ever reads the file's name.
demo: .venv/.demo
	@$(BIN)/python benchmarks/run_demo.py

# Files of tests side by side, one thread for each of the processes, which share the cores.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

# Slow tests one after the other: they start clusters and kill processes.
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

# Stamps: what was installed, renewed when the project's requirements change.
.venv/.demo: setup.cfg | $(BIN)/python
	@echo "installing into .venv (a few minutes, about 6 GB: PyTorch) ..."
	$(INSTALL) -e ".[offline-models,report]"
	@touch $@

.venv/.dev: setup.cfg | $(BIN)/python
	@echo "installing into .venv (a few minutes, about 6 GB: PyTorch) ..."
	$(INSTALL) -e ".[dev,offline-models,fast-asr,ray,tensorboard,report,parquet]"
	@touch $@ .venv/.demo
