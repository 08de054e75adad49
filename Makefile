# Every target works from a fresh clone with Python >= 3.11 and make; GNU make 3.81 is enough.

VENV     := .venv
PY       := $(VENV)/bin/python
STAMP    := $(VENV)/.setup
CHAPTERS := $(sort $(wildcard book/*.ipynb))
SITE     := book/_build/html
PROFILE  ?= full
RUNS     := $(or $(MICRONET_RUNS),runs)
WORKERS  ?= 2
TESTS    ?= tests
# Tests of what is computed with rounding, as against files, words and pages.
ROUNDED  := $(foreach part,training running search srip label augmentation pruning architecture \
	scoring distillation beyond early ternary adjustable assembled measures data plots,$(sort $(wildcard tests/test_$(part)*.py)))
ROUNDS   ?= 1
MARKS    ?= not slow

# A reader's own matplotlibrc, IPython start-up files or backend must not change a figure.
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/matplotlib
export IPYTHONDIR   := $(CURDIR)/$(VENV)/ipython
unexport MPLBACKEND
# Busy-waiting threads of two processes on shared cores starve each other.
OMP_WAIT_POLICY ?= PASSIVE
export OMP_WAIT_POLICY

# Our line and not papermill's own traceback; that of a failed cell stays.
PAPERMILL := $(PY) -c 'import sys; sys.tracebacklimit = 0; \
	from papermill.__main__ import papermill; papermill(prog_name="papermill")'

NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=600 \
	--nbval-sanitize-with=tests/nbval_sanitize.cfg

# Executed in place, a notebook keeps nothing that differs between two machines.
EXECUTE := MICRONET_RUNS=$$(mktemp -d) TQDM_DISABLE=1 $(PY) -m jupyter nbconvert --log-level=WARN --to notebook --execute \
	--inplace --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=600 \
	--ClearMetadataPreprocessor.enabled=True --ClearMetadataPreprocessor.clear_cell_metadata=False \
	--ClearMetadataPreprocessor.preserve_nb_metadata_mask='{("language_info","name"),"kernelspec","jupytext"}'

# What nbconvert needs to write a script of a notebook. Its mask keeps one field of a name at most.
LANGUAGE := {"language_info": {"name": "python", "file_extension": ".py", "nbconvert_exporter": "python"}}

.PHONY: help setup book test portable lint bench faults lab edit run day sync execute clean known-chapter
.DEFAULT_GOAL := help

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv with everything in it; done again when pyproject or constraints change
	@echo "ready: $(PY) (activate it with: source $(VENV)/bin/activate)"

# A copied or moved environment runs the library of the place where it was made.
MADE_FOR := $(shell cat $(STAMP) 2>/dev/null)
ifneq ($(MADE_FOR),$(CURDIR))
.PHONY: $(STAMP)
endif

# A shim can be on PATH and still start nothing, so every candidate is run before it is chosen.
$(STAMP): pyproject.toml constraints.txt
	@if [ -n "$(MADE_FOR)" ] && [ "$(MADE_FOR)" != "$(CURDIR)" ]; then \
	  echo "setup: $(VENV) was made for $(MADE_FOR), so it is made again here"; \
	  rm -rf $(VENV); \
	fi
	@recent='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PY) -c "$$recent" 2>/dev/null; then \
	  for python in $(PYTHON) python3.13 python3.12 python3.11 python3 none; do \
	    "$$python" -c "$$recent" >/dev/null 2>&1 && break; \
	  done; \
	  if [ "$$python" = none ]; then \
	    echo "setup: no Python >= 3.11 found; install one or name it: make setup PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  rm -rf $(VENV); \
	  if ! "$$python" -m venv $(VENV) >/dev/null 2>&1; then \
	    rm -rf $(VENV); \
	    echo "setup: $$python cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2; \
	    exit 1; \
	  fi; \
	fi
	@echo "setup: installing into $(VENV) (PyTorch is large: minutes the first time)"
	@export PIP_DISABLE_PIP_VERSION_CHECK=1; set -- -q -c constraints.txt -e '.[book,test,cluster,runtime]'; \
	if $(PY) -m pip install -q -c constraints.txt uv >/dev/null 2>&1; then \
	  $(PY) -m uv pip install --compile-bytecode --python $(PY) "$$@" || $(PY) -m pip install "$$@"; \
	else \
	  $(PY) -m pip install "$$@"; \
	fi
	@mkdir -p $(VENV)/ipython/profile_default
	@echo 'c.IPKernelApp.log_level = 40  # no warning that a kernel on this machine is not encrypted' \
	  > $(VENV)/ipython/profile_default/ipython_kernel_config.py
	@$(PY) -c "import matplotlib.font_manager" 2>/dev/null
	@printf '%s\n' "$(CURDIR)" > $@

book: $(STAMP) ## execute every chapter at profile smoke into runs/book, then build the site
	@rm -rf runs/book && mkdir -p runs/book
	@for chapter in $(notdir $(CHAPTERS)); do \
	  MICRONET_RUNS="$(CURDIR)/runs/book" $(PAPERMILL) \
	    "book/$$chapter" "runs/book/$$chapter" --cwd book -p profile smoke || exit 1; \
	done
	@$(PY) -m sphinx -n -W --keep-going -q book $(SITE)
	@$(PY) -c "import pathlib; print(pathlib.Path('$(SITE)/index.html').resolve().as_uri())"

test: $(STAMP) ## unit tests, notebooks against their outputs, the site (MARKS= for the slow ones too)
	OMP_NUM_THREADS=1 $(PY) -m pytest $(CHAPTERS) $(TESTS) $(NBVAL) -n $(WORKERS) --dist loadscope \
	  --no-loadscope-reorder -m "$(MARKS)" $(ARGS)

# oneDNN, PyTorch and MKL choose by these variables. SSE4.1 is near what an ARM laptop computes.
portable: $(STAMP) ## what is computed, and notebooks, with the older instruction sets of this CPU
	@status=0; own=$$($(PY) -c "import torch; print(torch.backends.cpu.get_cpu_capability())"); \
	again() { \
	  echo "portable: $$*"; \
	  env "$$@" $(MAKE) test MARKS="not slow" TESTS="$(ROUNDED)" || status=1; \
	}; \
	case "$$own" in \
	  AVX512) again ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 ;; \
	esac; \
	case "$$own" in \
	  AVX512|AVX2) again ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ;; \
	  *) echo "portable: no older instruction set than $$own can be asked for here, nothing to run" ;; \
	esac; \
	exit $$status

lint: $(STAMP) ## style, types, spelling
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/codespell

bench: $(STAMP) ## time the library's hot paths
	$(PY) -m pytest -o addopts="-q -s" tests/benchmarks $(ARGS)

faults: $(STAMP) ## kill, fill, damage and interrupt the pipeline; what it survives (ROUNDS=5 for more)
	@folder=$$(mktemp -d) && TQDM_DISABLE=1 OMP_NUM_THREADS=1 \
	  $(PY) tests/faults.py "$$folder" --rounds $(ROUNDS); status=$$?; rm -rf "$$folder"; exit $$status

lab: $(STAMP) ## open your own copies of the chapters in JupyterLab, from runs/lab
	@mkdir -p runs/lab
	@for chapter in $(notdir $(CHAPTERS)); do \
	  [ -e "runs/lab/$$chapter" ] || cp "book/$$chapter" runs/lab/; \
	done
	@echo "lab: runs/lab has your copies; delete one and run make lab again to get the book's back"
	$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/runs/lab $(ARGS)

edit: $(STAMP) ## authors: open the book itself in JupyterLab; saving changes it
	$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/book $(ARGS)

run: known-chapter $(STAMP) ## run one chapter: make run CH=05_pruning PROFILE=full ARGS="-p seed 1"
	@mkdir -p "$(RUNS)"
	@$(PAPERMILL) book/$(CH).ipynb "$(RUNS)/$(CH)-$(PROFILE).ipynb" --cwd book -p profile $(PROFILE) $(ARGS)

day: $(STAMP) ## measure for days on a CPU, the most wanted points first; goes on where it stopped
	OMP_NUM_THREADS=1 $(VENV)/bin/micronet agenda --profile day $(ARGS)

known-chapter:
	@case " $(notdir $(basename $(CHAPTERS))) " in \
	  *" $(CH) "*) ;; \
	  *) echo "no chapter '$(CH)'; choose CH from: $(notdir $(basename $(CHAPTERS)))" >&2; exit 1 ;; \
	esac

sync: $(STAMP) ## authors: bring book/*.ipynb and book/src/*.md to the newer of the two
	@$(PY) -m jupytext --quiet --sync book/src/*.md $(CHAPTERS)

execute: sync ## authors: execute the notebooks in place at smoke and keep the pair in step
	$(EXECUTE) $(if $(CH),book/$(CH).ipynb,$$(ls book/*.ipynb))
	@$(PY) -m jupytext --quiet --sync --update-metadata '$(LANGUAGE)' book/*.ipynb

clean: ## remove the site and caches; .venv and your runs stay
	rm -rf book/_build runs/book .pytest_cache .mypy_cache .ruff_cache .benchmarks
