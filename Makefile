# Two commands do everything: `make demo` and `make test`. Both make the environment in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out

.PHONY: demo test test-long quality format bench environment clean

environment: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

# Arguments: IMAGE= a file or folder, MODEL= and CHECKPOINT= as for `vitrail explain`, TARGET= a class.
demo: $(READY)
	$(BIN)/vitrail explain $(IMAGE) --model $(MODEL) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(if $(TARGET),--target "$(TARGET)") --output $(OUT)

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 -m "not long"

test-long: $(READY)
	$(BIN)/python -m pytest -q -n 2 -m long

quality: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) $(OUT)
