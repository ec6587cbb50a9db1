# The entry points. Each sets up what it needs: system libraries, a .venv in this folder, the package with its extras.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DISPLAYED := scripts/with-display

.PHONY: demo test slow check bench clean

demo: $(READY)
	$(DISPLAYED) $(BIN)/python -m napari_rskd.demo --output demo-output

test: $(READY)
	scripts/with-display --virtual $(BIN)/python -m pytest

slow: $(READY)
	scripts/with-display --virtual $(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/npe2 validate --imports napari-rskd

bench: $(READY)
	$(BIN)/python -m benchmarks.speed

clean:
	rm -rf $(VENV) demo-output

$(READY): pyproject.toml scripts/system-libraries
	scripts/system-libraries
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[all,test,dev]'
	touch $@
