# Two commands do everything: `make demo` and `make test`. Both make the environment in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out

# The environment is ours: Python may keep compiled modules in it, even where the shell says not to. Without them every
# process reads PyTorch's sources anew, 15 seconds long.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow quality format bench docs docs-release notebooks environment clean

environment: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

# Without IMAGE= a page from the built-in world, which needs no network. With it, that file or folder is explained:
# MODEL= and CHECKPOINT= as for `vitrail explain`; TARGET= a class, default the predicted one.
MODEL ?= timm/vit_tiny_patch16_224
demo: $(READY)
ifeq ($(IMAGE),)
	$(BIN)/vitrail demo --output "$(OUT)"
else
	$(BIN)/vitrail explain "$(IMAGE)" --model "$(MODEL)" $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") \
		$(if $(TARGET),--target "$(TARGET)") --output "$(OUT)"
	@echo "The pictures are in $(OUT)/"
endif

# Two workers of one thread each: with more threads than cores they would wait for each other, and those of a test that
# needs two spin (OMP_WAIT_POLICY). Tests of
# one family of models go to the same worker (tests/conftest.py), so that its reference is computed once.
test: $(READY)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2

test-slow: $(READY)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2 -m slow

quality: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/vitrail bench

# The documentation's site, in site/. A broken link or a page outside the navigation stops it (not with --quiet, which
# hides the warnings from --strict, too); `mkdocs serve` shows it while one writes.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Builds the site of this version into the branch gh-pages, beside those of earlier ones; pushing it is left to you.
docs-release: $(READY)
	DOCS_VERSIONS=mike NO_MKDOCS_2_WARNING=1 $(BIN)/mike deploy --update-aliases \
		"$$($(BIN)/python -c 'import vitrail; print(vitrail.__version__.rpartition(".")[0])')" latest
	$(BIN)/mike set-default latest

# Runs the notebooks anew from the scripts beside them, and stores what they show.
notebooks: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python docs/notebooks/execute.py

clean:
	rm -rf $(VENV) $(OUT) site
