# The entry points. Each sets up what it needs: system libraries, a .venv in this folder, the package with its extras.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VIRTUAL := scripts/virtual-display
HEADLESS := $(if $(filter Linux,$(shell uname)),$(if $(DISPLAY)$(WAYLAND_DISPLAY),,yes))

.PHONY: demo test test-pyside slow check bench docs screenshots clean

demo: $(READY)
	$(if $(HEADLESS),@echo "There is no display: using a virtual one and writing to demo-output/")
	$(if $(HEADLESS),$(VIRTUAL)) $(BIN)/python -m napari_rskd.demo $(if $(HEADLESS),--output demo-output)

test: $(READY)
	$(VIRTUAL) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0

# The window's tests with the other Qt binding, which lies beside the environment so that only one is found at a time.
# PySide6 6.12.0 gives back a reference too many with every value of a combo box, which ends Python 3.11 after a while.
PYSIDE := $(VENV)/pyside6
test-pyside: $(READY)
	test -d $(PYSIDE) || $(BIN)/python -m pip install --quiet --target $(PYSIDE) 'PySide6-Essentials>6.7,!=6.11.0,!=6.11.1,!=6.12.0'
	PYTHONPATH=$(PYSIDE) QT_API=pyside6 PYTEST_QT_API=pyside6 $(VIRTUAL) $(BIN)/python -m pytest tests/gui

slow: $(READY)
	$(VIRTUAL) $(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/npe2 validate --imports napari-rskd
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

bench: $(READY)
	$(BIN)/python -m benchmarks.speed

docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

screenshots: $(READY)
	$(VIRTUAL) $(BIN)/python scripts/screenshots

clean:
	rm -rf $(VENV) demo-output docs/_build

$(READY): pyproject.toml scripts/system-libraries
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: call make PYTHON=python3.12, for example." >&2; exit 1; }
	scripts/system-libraries
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[all,test,dev,docs]'
	touch $@
