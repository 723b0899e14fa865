# Two commands: `make demo` and `make test`. Both create .venv and install the project into it first.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
BIN := $(VENV)/bin
SOURCES := $(shell find kpconv_ops/csrc tools -type f)

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/dsp-sparse rooms $(DEMO)/raw --rooms 8 --points 60000 --seed 0
	$(BIN)/dsp-sparse prepare s3dis $(DEMO)/raw $(DEMO)/store --grid 0.08
	$(BIN)/dsp-sparse compare configs/demo.yaml --train.data.store $(DEMO)/store --out $(DEMO)/compare

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# An editable install: the kernels are compiled into kpconv_ops/, the Python files are used where they stand.
$(VENV)/.installed: setup.py pyproject.toml constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,report]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info kpconv_ops/*.so
