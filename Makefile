# Two commands: `make demo` and `make test`. Both create .venv and install the project into it first.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
BIN := $(VENV)/bin
SOURCES := $(shell find kpconv_ops/csrc tools -type f)

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/dsp-sparse rooms $(DEMO)/raw --rooms 12 --points 60000 --seed 0 --areas 3
	$(BIN)/dsp-sparse prepare s3dis $(DEMO)/raw $(DEMO)/store --grid 0.08
	$(BIN)/dsp-sparse compare configs/demo.yaml --train.data.store $(DEMO)/store --out $(DEMO)/compare

# A process a core with one thread each: threads of several processes would wait for each other.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

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
