PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo docs test

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt requirements-offline.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements-offline.txt
	touch $@

demo: setup
	WANDB_MODE=offline $(BIN)/lightning-backdoor benchmark --config configs/benchmark/demo.yaml --output runs/demo

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build

test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
