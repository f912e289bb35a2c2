VENV := .venv
BIN := $(VENV)/bin
RESULTS := benchmarks/results
CONSTRAINTS := constraints.txt
SELDOM := '/tests?/|/testing/|/transformers/models/|/(pip|mypyc?|fontTools|pygments|setuptools|pytorch_lightning|lightning_fabric|torchgen|pydantic|aiohttp|trl)/|/sympy/physics/'
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint $(CONSTRAINTS)

.PHONY: demo test test-slow test-docs test-newest docs format assets bench bench-gpu faults mutants soak clean

demo: $(VENV)/ready  ## the main job on the embedded world; about 10 minutes on two cores
	$(BIN)/lsemrl demo

test: $(VENV)/ready  ## lint, types, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy & types=$$!; \
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist worksteal; tests=$$?; \
	wait $$types && exit $$tests

test-slow: $(VENV)/ready  ## test-docs, kills of several ranks, SLURM, peaks of memory, the smallest benchmarks, the rest of each matrix; 12 minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

test-docs: $(VENV)/ready  ## what the README and docs tell to type, run from top to bottom; 5 to 7 minutes on two busy cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests/test_docs.py

# Its first line asks whether what is pinned can be had from PyPI alone, whose PyTorch wants more than a build for the CPU.
test-newest: $(VENV)/ready  ## the tests with the newest packages that pyproject.toml allows, as a user gets them today; PyTorch as pinned
	PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--dry-run --ignore-installed --constraint constraints.txt torch==2.13.0 '.[dev]'
	rm -rf .venv-newest
	$(MAKE) .venv-newest/ready VENV=.venv-newest CONSTRAINTS=/dev/null
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv-newest/bin/pytest -m "not slow" -n auto --dist worksteal

docs: $(VENV)/docs  ## README and docs as a site, with the reference, in site/; a dead link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

format: $(VENV)/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

assets: $(VENV)/ready  ## rebuild the embedded policy and encoder from the seed
	OMP_NUM_THREADS=1 $(BIN)/lsemrl build-micro --output src/lsemrl/micro/assets

bench: $(VENV)/ready  ## steps against TRL, kernels against others, and how a step grows, on the CPU
	$(BIN)/python benchmarks/bench_step.py --device cpu --also compiled --results $(RESULTS)
	$(BIN)/python benchmarks/bench_kernel.py --device cpu --results $(RESULTS)
	$(BIN)/python benchmarks/bench_scaling.py --device cpu --results $(RESULTS)

# What matters most first, in case a borrowed machine goes back early.
# Where python and its packages are there already: make -o .venv/ready -i bench-gpu BIN=/usr/bin RESULTS=elsewhere
bench-gpu: $(VENV)/ready  ## the same on a CUDA device, with a model of 0.6 billion parameters; half an hour, the first two lines 2 minutes
	$(BIN)/python benchmarks/bench_rollout.py --device cuda --model qwen3-0.6b-random --rows 8 64 --results $(RESULTS)
	$(BIN)/python benchmarks/bench_kernel.py --device cuda --no-compile --tokens 8192 32768 --results $(RESULTS)
	$(BIN)/python benchmarks/bench_step.py --device cuda --model qwen3-0.6b-random --shape headline \
		--prompt 1024 --completion 64 --steps 10 --results $(RESULTS)
	$(BIN)/python benchmarks/bench_step.py --device cuda --steps 10 --results $(RESULTS)
	$(BIN)/python benchmarks/bench_kernel.py --device cuda --results $(RESULTS)
	$(BIN)/python benchmarks/bench_step.py --device cuda --model qwen3-0.6b-random --shape headline \
		--prompt 1024 --completion 64 --steps 10 --also compiled flex --results $(RESULTS)
	$(BIN)/python benchmarks/bench_scaling.py --device cuda --steps 2 --warmup 2 --results $(RESULTS)

faults: $(VENV)/ready  ## 200 kills at random moments, 100 more of two ranks, bad inputs; about an hour on two cores
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py --results $(RESULTS)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py --layout ddp --kills 50 --results $(RESULTS)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py --layout fsdp --kills 50 --results $(RESULTS)

mutants: $(VENV)/ready  ## faults put into the code one at a time, and whether a test fails; about half an hour
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py --results $(RESULTS)

soak: $(VENV)/ready  ## 2,000 rollout steps, watched for what grows; about twenty minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --results $(RESULTS)

clean:
	rm -rf $(VENV) .venv-newest

# pip first: the one that an older Python brings takes twice as long to resolve. torch next and pinned: alone, a range
# would take the newest build and several GB of CUDA with it. Compiled afterwards, by all cores, which pip does by one,
# and without what is seldom imported; some packages bring files of another Python, which do not compile.
$(VENV)/ready: pyproject.toml constraints.txt
	@echo "installing into $(VENV): 3 GB, 1.8 minutes on two cores; pip says nothing until it has done"
	python3 -m venv $(VENV)
	$(PIP) pip
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[dev]'
	@$(BIN)/python -m compileall -q -j 0 -x $(SELDOM) $(VENV)/lib >$(VENV)/compiled 2>&1; true
	touch $@

$(VENV)/docs: $(VENV)/ready
	$(PIP) --editable '.[docs]'
	touch $@
