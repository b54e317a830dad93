PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo grid docs test gpu

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt requirements-offline.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements-offline.txt
	touch $@

demo: setup
	$(BIN)/lightning-backdoor benchmark --config configs/benchmark/demo.yaml --output runs/demo

# about 15 minutes on two cores
grid: setup
	WANDB_MODE=offline $(BIN)/lightning-backdoor benchmark --config configs/benchmark/movie_reviews.yaml \
		--output runs/movie_reviews

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build

test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# at most 9 minutes; without a GPU it measures tiny networks on the processor
gpu: setup
	$(BIN)/python -m tests.measurements.gpu
