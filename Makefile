# make report and make test are all that is needed; both set up .venv first, and do nothing twice.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help report wandb-report test lint fast bench lock clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}; name another with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

report: .venv/installed  ## execute assignment1.ipynb on the real data; write assignment1.pdf and assignment1.html
	$(BIN)/python report.py

wandb-report: .venv/installed  ## write the report on W&B, from the runs of its project, and print its address
	$(BIN)/python wandb_report.py

test: .venv/installed  ## run the tests (about 8 minutes)
	$(BIN)/python -m pytest

lint: .venv/installed  ## check the style of code and notebook
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/fast: .venv/installed requirements-fast.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-fast.txt
	@touch $@

fast: .venv/fast  ## install Numba, for --backend compiled: the same trainings in half of the time

.venv-bench/installed: requirements.txt benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -r benchmarks/requirements.txt
	@touch $@

bench: .venv-bench/installed  ## compare the speed with PyTorch, JAX, scikit-learn and Keras, in an environment of their own
	.venv-bench/bin/python benchmarks/peers.py

lock: .venv/installed  ## compile requirements.in into requirements.txt, all versions pinned
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.txt requirements.in
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links --constraint requirements.txt --output-file requirements-fast.txt requirements-fast.in
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links --constraint requirements.txt --output-file benchmarks/requirements.txt benchmarks/requirements.in
	sed -i.old -E '/^(nvidia|cuda|triton)/d' benchmarks/requirements.txt && rm benchmarks/requirements.txt.old  # no GPU here

clean:  ## remove what was made: caches, exports, the environment
	rm -rf .venv .venv-bench .pytest_cache .ruff_cache data/cache wandb assignment1.html
