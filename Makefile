# make            lint and test
# make setup      virtual environment in .venv with the tested versions (constraints.txt); the command
#                 is .venv/bin/lvlm-export
# make test       everything that runs in minutes on a CPU
# make test-slow  the long tests
# make test-gpu   the tests that need an NVIDIA GPU; with ONNXRUNTIME=cuda those of its ONNX Runtime too
# make test-py310 the runtime's and profiles' tests on Python 3.10 (JetPack 6), where it is at hand
# make test-lowest    the same with the lowest versions that pyproject.toml admits
# make test-serve the server's long tests: a thousand mixed requests, its page in chromium where that is, and
#                 requests made of its own description; what they need is installed into .venv-serve
# make test-ray   a search on a local Ray, which is installed into .venv-ray for it
# make lint       ruff, mypy and shellcheck
# make fuzz       50,000 attacks on every reader with a random seed (ATTACKS=, MINUTES=), then the binary
#                 readers under atheris (SECONDS_EACH=)
# make attacks    the same, and its counts in docs/attacks.md
# make demo       build the demo bundle, ask it about pictures, check it against PyTorch
# make demo-table accuracy of the demo model at every ratio and method (half an hour)
# make demo-tune  search for the demo model's reduction (ten minutes)
# make demo-quecc QueCC trained at 16, 4 and 1 tokens, beside training-free methods (over an hour)
# make picture-strip   docs/strip.png: a picture, the patches that stay at falling ratios, answers and times
# make merging-picture  docs/merging.png: which patches of a scene go into which
# make bench-peers   the same chain against PyTorch and onnxruntime-genai, interleaved
# make bench-engines time, memory and size of TensorRT-RTX engines of that checkpoint
# make bench-serve  a server under load: fixed ratios and a goal per request, and what HTTP adds
# make bench-precision fp32, int8 and int4 on it: first token, decode, file and memory
# make readme     fill the generated parts of README and docs from the commands and the results
# make docs       the pages of docs as a site in build/site; a broken link fails
# make bench      time to first token on a checkpoint of LLaVA-OneVision-0.5B's shapes
# make clean      remove what the other targets made, the environments included

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all
.PHONY: all help setup test test-slow test-gpu test-py310 test-lowest test-serve test-ray lint fuzz attacks demo demo-table \
  demo-tune demo-quecc merging-picture picture-strip bench bench-peers bench-engines bench-precision bench-serve readme docs clean

BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# cpu or cuda: the extra that brings ONNX Runtime.
ONNXRUNTIME ?= cpu
STAMP := $(VENV)/.ready-$(ONNXRUNTIME)
PIP := $(BIN)/pip -qq --disable-pip-version-check
# Test workers; each holds PyTorch in memory.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))

all: lint test

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

setup: $(STAMP)

# Both builds of ONNX Runtime install the same module, so both go before one comes. torch comes first
# and alone: of this one version a CPU build may lie at hand (PIP_FIND_LINKS or an index of such
# builds), and nothing that follows may make pip look for another.
$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV)"
	@$(BASE_PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.ready*
	@$(PIP) uninstall -y onnxruntime onnxruntime-gpu
	@$(PIP) install "torch==2.13.0"
	@$(PIP) install -c constraints.txt -e ".[$(ONNXRUNTIME),export,rtx,sign,dev]"
	@touch $@

test: $(STAMP)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -m slow -n $(JOBS) --dist worksteal

test-gpu: $(STAMP)
	@$(BIN)/python -m pytest -m gpu -rs

# Python 3.10 has no ONNX Runtime that knows opset 24.
test-py310: $(STAMP)
	@BIN=$(BIN) JOBS=$(JOBS) tools/test_runtime.sh 3.10 tested decomposed

test-lowest: $(STAMP)
	@BIN=$(BIN) JOBS=$(JOBS) tools/test_runtime.sh 3.10 lowest decomposed
	@BIN=$(BIN) JOBS=$(JOBS) tools/test_runtime.sh 3.11 lowest opset24

SITE_PACKAGES = $$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')

# schemathesis and playwright bring much that no other test needs; the browser is the system's.
.venv-serve/.ready: constraints.txt
	@$(BASE_PYTHON) -m venv .venv-serve
	@.venv-serve/bin/pip -qq install -c constraints.txt "schemathesis>=4" "playwright>=1.50"
	@touch $@

test-serve: $(STAMP) .venv-serve/.ready
	@PYTHONPATH=$(CURDIR)/exporter:$(CURDIR)/runtime:$(CURDIR)/profiles:$(SITE_PACKAGES) \
	  .venv-serve/bin/python -m pytest -m slow tests/runtime/serve

# Ray is large and for clusters, so it is not among the packages of the tests.
.venv-ray/.ready: constraints.txt
	@$(BASE_PYTHON) -m venv .venv-ray
	@.venv-ray/bin/pip -qq install -c constraints.txt "ray>=2.40"
	@touch $@

test-ray: $(STAMP) .venv-ray/.ready
	@PYTHONPATH=$(CURDIR)/exporter:$(CURDIR)/runtime:$(CURDIR)/profiles:$(SITE_PACKAGES) \
	  .venv-ray/bin/python -m pytest -m slow tests/exporter/tune/test_on_ray.py

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy examples/06_from_python/ask.py
	@$(BIN)/shellcheck -x -P SCRIPTDIR .ci/run $$(git ls-files '*.sh')

ATTACKS ?= 50000
MINUTES ?= 60
SECONDS_EACH ?= 120
ATTACK := PYTHONPATH=tests/support $(BIN)/python tools/attack.py build/fuzz
# atheris has wheels for some versions of Python alone, so it is not among the packages of the tests.
ATTACK_BINARY := PYTHONPATH=exporter:runtime:profiles:$(SITE_PACKAGES) \
  .venv-atheris/bin/python tools/attack_binary.py build/fuzz --seconds $(SECONDS_EACH)

.venv-atheris/.ready:
	@$(BASE_PYTHON) -m venv .venv-atheris
	@.venv-atheris/bin/pip -qq install "atheris>=3"
	@touch $@

fuzz: $(STAMP) .venv-atheris/.ready
	@$(ATTACK) --invocations $(ATTACKS) --minutes $(MINUTES)
	@$(ATTACK_BINARY)

attacks: $(STAMP) .venv-atheris/.ready
	@$(ATTACK) --invocations 0
	@$(ATTACK_BINARY)
	@$(ATTACK) --invocations $(ATTACKS) --minutes $(MINUTES) --table docs/attacks.md

demo: $(STAMP)
	@$(BIN)/python -m lvlm_export.demo.show

demo-table: $(STAMP)
	@$(BIN)/python -m lvlm_export.demo.train.table

demo-tune: $(STAMP)
	@$(BIN)/lvlm-export tune -o build/tune
	@$(BIN)/python -m lvlm_export.demo.train.tuned build/tune/result.json

QUECC := $(BIN)/python -m lvlm_export.demo.train.mosaics.train_quecc --checkpoint build/quecc/tower --train-text

demo-quecc: $(STAMP)
	@$(BIN)/python -m lvlm_export.demo.train.mosaics.enlarge --pixels 128 --steps 500 --output build/quecc/tower
	@$(QUECC) --tokens 16 --steps 2400 --output build/quecc/quecc-16
	@$(QUECC) --tokens 4 --steps 1200 --start build/quecc/quecc-16 --output build/quecc/quecc-4
	@$(QUECC) --tokens 1 --steps 1200 --start build/quecc/quecc-4 --output build/quecc/quecc-1
	@$(QUECC) --tokens 4 --steps 1200 --seed 1 --start build/quecc/quecc-4 --output build/quecc/quecc-4
	@$(QUECC) --tokens 1 --steps 1200 --seed 1 --start build/quecc/quecc-1 --output build/quecc/quecc-1
	@$(BIN)/python -m lvlm_export.demo.train.mosaics.few_tokens build/quecc

merging-picture: $(STAMP)
	@$(BIN)/python tools/merging_picture.py

picture-strip: $(STAMP)
	@$(BIN)/python tools/picture_strip.py

bench: $(STAMP)
	@$(BIN)/python benchmarks/first_token.py

# onnxruntime-genai brings its own onnxruntime, which must not lie beside onnxruntime-gpu.
.venv-genai/.ready:
	@$(BASE_PYTHON) -m venv .venv-genai
	@.venv-genai/bin/pip -qq install "torch==2.13.0"
	@.venv-genai/bin/pip -qq install onnxruntime-genai onnxruntime onnx onnx_ir transformers
	@touch $@

bench-peers: $(STAMP) .venv-genai/.ready
	@$(BIN)/python benchmarks/peers.py --genai-python .venv-genai/bin/python
	@$(BIN)/python benchmarks/peers.py --shapes llava-7b-cut

bench-engines: $(STAMP)
	@$(BIN)/python benchmarks/engine_build.py

bench-precision: $(STAMP)
	@$(BIN)/python benchmarks/precision.py

bench-serve: $(STAMP)
	@$(BIN)/python benchmarks/serve_load.py

readme: $(STAMP)
	@PYTHONPATH=tests/support $(BIN)/python tools/update_readme.py

# mkdocs is for the site alone, so it is not among the packages of the tests.
.venv-docs/.ready: constraints.txt
	@$(BASE_PYTHON) -m venv .venv-docs
	@.venv-docs/bin/pip -qq install "mkdocs>=1.6,<2" "mkdocs-material>=9.7,<10"
	@touch $@

docs: .venv-docs/.ready
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

clean:
	rm -rf $(VENV) .venv-* build bundles .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
