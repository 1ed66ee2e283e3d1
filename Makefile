# `make` alone lists the targets. Each target sets up .venv first when that is still to be done.
PYTHON ?= python3
RUN := .venv/bin/python
INSTALLED := .venv/installed
# An environment whose Python is gone, as after an upgrade, is made anew below: then nothing is installed in it.
$(shell for venv in .venv .venv-oldest; do test -e $$venv/bin/python || rm -f $$venv/installed; done)

.PHONY: help setup demo app test test-oldest compare bench readme
.DELETE_ON_ERROR:

help:
	@echo "make demo         fine-tune a small captioner on drawn pictures and caption new ones (a few minutes)"
	@echo "make app          caption pictures in the browser, with the demo's weights"
	@echo "make test         check the style, the types and the layout, and run the tests"
	@echo "make test-oldest  run the tests with the oldest packages that pyproject.toml allows, on Python 3.11"
	@echo "make compare      fine-tune in all four ways on the drawn pictures and write one table"
	@echo "make bench        measure the speed beside other captioners, and write benchmarks/RESULTS.md"
	@echo "make readme       put the pictures and the table of the last \`make compare\` into the README"
	@echo "make setup        only create .venv and install the packages; PYTHON=python3.12 chooses the Python"

setup: $(INSTALLED)

.venv/bin/python .venv-oldest/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) or sys.version_info[:3] == (3, 14, 1))' 2>/dev/null || { \
		found=`$(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null`; \
		echo "error: Python 3.11 to 3.14 is needed, but not 3.14.1, and $(PYTHON) is $${found:-not there};" \
			"name another: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv --clear $(@:/bin/python=)

$(INSTALLED): pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing the packages into .venv: a few minutes and a few GB, the first time only ..." >&2
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@echo "Installed. To use the scripts directly: source .venv/bin/activate" >&2
	@touch $@

demo: $(INSTALLED)
	$(RUN) load_data.py --demo
	$(RUN) basic_finetuning.py --demo
	$(RUN) -m demo.draw
	@rm -f runs/demo/captions.jsonl  # of an earlier run: predict.py would keep them
	$(RUN) predict.py --demo runs/demo/photos --output runs/demo/captions.jsonl
	$(RUN) -m demo.show

app: $(INSTALLED)
	$(RUN) app.py --weights demo

test: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy & $(RUN) -m pytest -q -n auto --maxprocesses 4 --dist loadfile tests/test_layout.py tests && wait $$!

# Every bound `NAME>=VERSION` of pyproject.toml becomes `NAME==VERSION`: pip refuses bounds that do not go together.
test-oldest: PYTHON = python3.11
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile tests/test_layout.py tests

.venv-oldest/installed: pyproject.toml | .venv-oldest/bin/python
	@grep -oE '"[A-Za-z0-9_.-]+>=[0-9.]+' pyproject.toml | sed 's/"//; s/>=/==/' > .venv-oldest/constraints.txt
	@echo "Installing the oldest packages into .venv-oldest: a few minutes and a few GB, the first time only ..." >&2
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-oldest/constraints.txt --editable '.[dev]'
	@touch $@

# By name, since runs/demo/ may hold other runs.
COMPARED := base/base frozen/frozen_model lora_16/lora_16 lora_4/lora_4 prompted/prompted

compare: $(INSTALLED)
	$(RUN) load_data.py --demo
	$(RUN) basic_finetuning.py --demo
	$(RUN) prompt_finetuning.py --demo
	$(RUN) lora_finetuning.py --demo --rank 4 16
	$(RUN) frozen_finetuning.py --demo
	$(RUN) evaluate.py --demo $(COMPARED:%=runs/demo/%_weights.pt) --output runs/demo/report

bench: $(INSTALLED)
	$(RUN) -m benchmarks

readme: $(INSTALLED)
	$(RUN) docs/fill_readme.py
