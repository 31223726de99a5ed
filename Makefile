# make demo: the whole experiment on the embedded data.  make test: lint, types and the whole suite.
# make api, docs, sbom: the contract (docs/api.md), all docstrings as pages, the bill of materials.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.installed

.PHONY: demo test lint benchmark api docs sbom clean

demo: $(READY)
	$(VENV)/bin/cprfl run configs/demo.yaml

test: lint
	$(VENV)/bin/pytest

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

benchmark: $(READY)
	$(VENV)/bin/python -m tests.benchmarks

api: $(READY)
	$(VENV)/bin/python .ci/contract.py

docs: $(READY)
	$(VENV)/bin/python .ci/site.py

sbom: $(READY)
	$(VENV)/bin/python .ci/sbom.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("cprfl needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) outputs build
