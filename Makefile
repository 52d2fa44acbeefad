# make demo [IMAGES=folder]   encode, train, generate on photographs; runs/demo/report.html
# make gpu                   on a machine with a GPU: the tests that need one, and a table of its figures
# make docs                  API reference from the docstrings: build/docs/index.html
# make test | lint | bench    each creates .venv if needed; PYTHON=python3.12 names another Python
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python,\
	$(shell command -v $(name) >/dev/null 2>&1 && $(name) -c \
	'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))) python3)
RUN := .venv/bin/python
INSTALLED := .venv/installed

.PHONY: demo test lint bench gpu docs

demo: $(INSTALLED)
	$(RUN) -m pipelines.demo $(if $(IMAGES),--images "$(IMAGES)")

test: $(INSTALLED)
	$(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(INSTALLED)
	set -e; for file in $(filter-out %/bench_gpu.py,$(wildcard tests/benchmarks/bench_*.py)); do echo "$$file"; $(RUN) "$$file"; done

gpu: $(INSTALLED)
	$(RUN) -m pytest -m gpu tests
	$(RUN) tests/benchmarks/bench_gpu.py

docs: $(INSTALLED)
	$(RUN) -m pdoc --output-directory build/docs ops tokenizer prior pipelines

# Repeated when pyproject.toml changes; the stamp is touched last, after a successful install.
# Without, a fifth of the time goes into the bytecode of modules nothing imports.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Smalti needs Python 3.11 or newer; '$(PYTHON)' is not." \
		"Install one, or name it: make PYTHON=python3.12 test" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --disable-pip-version-check -e ".[dev,demo]"
	@touch $@
