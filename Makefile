# `make demo` and `make test` work from a clean clone.
#
# PYTHON=...  use (and install into) that interpreter's environment instead of .venv

VENV := .venv
DEMO := output/demo
GLYPHS := output/glyphs

ifdef PYTHON
RUN := $(PYTHON)
else
RUN := $(VENV)/bin/python
endif
# How long a thread of PyTorch spins before it releases its core. GNU OpenMP's default is thirty
# times as long. It is not faster on an idle machine, and slower on a busy one.
export GOMP_SPINCOUNT ?= 10000

# Tests run in parallel, those of one file in one process, because they share trained models.
PYTEST := -m pytest -q -n auto --maxprocesses 4 --dist loadscope

STAMP := .cache/env-$(subst /,_,$(RUN))

.PHONY: env demo test test-slow test-gpu check lint types clean
.DEFAULT_GOAL := env

env: $(STAMP)

$(STAMP): constraints.txt setup.py pyproject.toml tools/make_env.py tools/install_detectron2.py
	@$(if $(PYTHON),$(PYTHON) tools/make_env.py,python3 tools/make_env.py --venv $(VENV))
	@mkdir -p $(@D) && touch $@

demo: env
	@$(RUN) datasets/make_glyphs.py --out $(GLYPHS) --classes 10 --imbalance 20 \
	    --train-images 1600 --val-images 150 --rare-at-most 250 --common-at-most 700
	@$(RUN) tools/train_net.py --config-file configs/glyphs_quickstart.yaml --overwrite \
	    --dataset glyphs_train $(GLYPHS)/glyphs_train.json $(GLYPHS) \
	    --dataset glyphs_val $(GLYPHS)/glyphs_val.json $(GLYPHS) \
	    OUTPUT_DIR $(DEMO)
	@$(RUN) tools/demo.py --config-file configs/glyphs_quickstart.yaml \
	    --weights $(DEMO)/model_final.pth --input '$(GLYPHS)/val/00000000000*.jpg' \
	    --output $(DEMO)/pictures --enlarge
	@echo "The pictures are in $(DEMO)/pictures, the metrics in $(DEMO)/inference/lvis_results.json."

lint: env
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m codespell_lib

types: env
	@$(RUN) -m mypy

check: lint types
	@$(RUN) $(PYTEST) -m "not slow and not e2e"

test: env
	@$(RUN) $(PYTEST) -m "not slow"

# On a GPU, or where there is none on the emulated device of tests/second_device.
test-gpu: env
	@$(RUN) $(PYTEST) -m "not slow" --device cuda

test-slow: env
	@$(RUN) -m pytest -q -m slow

clean:
	rm -rf $(VENV) .cache output
