VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test format assets clean

demo: $(VENV)/ready  ## the main job on the embedded world; about ten minutes on two CPU cores
	$(BIN)/lsemrl demo

test: $(VENV)/ready  ## lint, types, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n auto

format: $(VENV)/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

assets: $(VENV)/ready  ## rebuild the embedded policy and encoder from the seed
	$(BIN)/lsemrl build-micro --output src/lsemrl/micro/assets

clean:
	rm -rf $(VENV)

# torch first and pinned: alone, a range would take the newest build and several GB of CUDA with it.
$(VENV)/ready: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
