# make reproduce and make test are all that a newcomer types; each sets up .venv first if it is not there.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
# auto: CPU build of torch where there is no NVIDIA GPU; cpu; cuda; skip (keep what is installed); or a pip requirement.
TORCH ?= auto
# Further extras of pyproject.toml, such as slurm,ray: they belong to nobody's default.
EXTRAS ?=
# embedded: both jobs, small, on two CPU cores; smoke: the same in less than a minute; paper: the paper's setting (GPU, Hub).
SCALE ?= embedded
# How many points run at once; at the paper's scale as many as there are GPUs.
ifneq ($(SCALE),paper)
WORKERS ?= 2
endif

COMMA := ,
BIN := $(VENV)/bin
STAMP := $(VENV)/.multiref-installed
MULTIREF := $(BIN)/multiref
AT_ONCE := $(if $(WORKERS),--workers $(WORKERS))
OUT := runs/reproduce-$(SCALE)
# Results that are committed for this scale; the report says which new means lie within their intervals.
PUBLISHED := runs/published/$(SCALE).csv
# Results of `multiref sweep sweep=estimators`.
ESTIMATORS := runs/published/estimators.csv
# One mix against its rivals, of `make rivals`.
RIVALS := runs/published/rivals.csv
# Which regularizer wins in which cell, of `make regimes`; rows and scores of these metrics lie beside it.
REGIMES := runs/published/regimes.cells.csv
REGIME_METRICS := 'toy_gold', 'toy_verifier', 'kl/instruct', 'kl/instruct_large', 'kl/math'
# What holds over worlds, of `make worlds`.
WORLDS := runs/published/worlds.csv
TORCH_RANGE := torch>=2.9,<3
CPU_INDEX := https://download.pytorch.org/whl/cpu

# The page that shows all results, also as `multiref help results`; the README has one figure and its caption.
RESULTS := multiref_cli/help/results.md
# Puts the committed results $(1) between their marks in that page.
update_results = $(BIN)/python -c "from pathlib import Path; from multiref_cli.reports import published; \
  published.update_readme(Path('$(RESULTS)'), Path('$(1)'), '$(1)', published.metrics_of(Path('$(1)')))"
# Puts the captions of all published results between their marks in the README and in that page.
update_captions = $(BIN)/python -c "from pathlib import Path; from multiref_cli.reports import captions; \
  captions.update_captions(Path('README.md'), Path('$(RESULTS)'))"
# Puts the answers of the report $(1), one reference or several, under the published name $(2) and into that page.
publish_answers = cp $(1)/contest.json $(2) && $(BIN)/python -c "from pathlib import Path; \
  from multiref_cli.reports import contest, published; \
  published.put_results(Path('$(RESULTS)'), '$(2)', contest.answers_table(contest.read_answers(Path('$(2)'))))"
# Puts the rows, scores and verdicts of the report $(1) under the published name $(2).
publish_report = cp $(1)/summary.csv $(2).csv && cp $(1)/scores.csv.gz $(2).scores.csv.gz && \
  cp $(1)/verdicts.csv $(2).verdicts.csv

# Every arm at its own best, of `make tuned`.
TUNED := runs/published/tuned.csv

# One reference or several, of `make several`.
SEVERAL := runs/published/several.contest.json
SEVERAL_METRICS := 'toy_gold', 'reward_model', 'ranking_accuracy', 'preference_accuracy'

# A real language model, of `make smollm`; its models and data, each a Hub id, a folder or a file; further settings of
# every step.
SMOLLM_RESULTS := runs/published/smollm.csv
SMOLLM_SUMS := runs/published/smollm_sums.csv
SMOLLM ?= HuggingFaceTB/SmolLM2-135M-Instruct
ENCODER ?= sentence-transformers/all-MiniLM-L6-v2
ULTRAFEEDBACK ?= trl-lib/ultrafeedback_binarized
GSM8K ?= openai/gsm8k
HH ?= Anthropic/hh-rlhf
SETTINGS ?=
# Makes one model of that study: name, start, data if it does not name its own.
train_smollm = test -d runs/smollm/$(1)/policy || { rm -rf runs/smollm/$(1) && OMP_NUM_THREADS=1 $(MULTIREF) train \
  experiment=smollm/$(1) policy.path=$(2) $(if $(3),data.path=$(3)) tracking=off run.dir=runs/smollm/$(1) $(SETTINGS); }

# Reports one of its sweeps $(1) and publishes that under a name $(2).
define publish_smollm
$(MULTIREF) report $(1) --out $(1)-report
$(call publish_report,$(1)-report,$(2))
$(call publish_answers,$(1)-report,$(2).contest.json)
cp $(1)-report/figures/overview.png $(2).png
$(call update_results,$(2).csv)
endef

.DEFAULT_GOAL := help
.PHONY: help setup test reproduce publish worlds rivals regimes tuned several smollm lint gpu bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  options: TORCH=auto|cpu|cuda|skip|REQUIREMENT  EXTRAS=slurm,ray"
	@echo "           SCALE=embedded|smoke|paper  WORKERS=2  PYTHON=python3  FAST=1  ARGS='-k WORDS' (of make test)"

setup: $(STAMP) ## make .venv and install multiref into it

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch ($(TORCH)) and the rest into $(VENV): a few minutes the first time"
	@set -e; pip="$(BIN)/python -m pip --disable-pip-version-check -q"; \
	cpu() { $$pip install 'torch==2.13.0+cpu' 2>/dev/null \
	  || $$pip install --timeout 10 --retries 0 --index-url $(CPU_INDEX) '$(TORCH_RANGE)' 2>/dev/null \
	  || $$pip install '$(TORCH_RANGE)'; }; \
	case '$(TORCH)' in \
	  skip) ;; \
	  cpu) cpu ;; \
	  cuda) $$pip install '$(TORCH_RANGE)' ;; \
	  auto) if $(BIN)/python -c 'import torch' 2>/dev/null; then :; \
	        elif nvidia-smi -L >/dev/null 2>&1; then $$pip install '$(TORCH_RANGE)'; else cpu; fi ;; \
	  *) $$pip install '$(TORCH)' ;; \
	esac; \
	$$pip install -e '.[dev$(if $(EXTRAS),$(COMMA)$(EXTRAS))]' 2> >(grep -v '^WARNING: Location' >&2)
	@touch $@

# FAST=1: mathematics, data and config alone.
FAST_TESTS := tests/objectives tests/theory tests/data tests/config -m 'not slow'

# One thread a process: with both cores busy, two threads each are several times slower.
test: $(STAMP) ## run the tests (a few minutes; FAST=1: mathematics, data and config alone, less than a minute)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(if $(FAST),$(FAST_TESTS),tests) $(ARGS)

reproduce: $(STAMP) ## both of the paper's experiments, trained, scored and reported (SCALE=embedded|smoke|paper)
	OMP_NUM_THREADS=1 $(MULTIREF) sweep sweep=reproduce_$(SCALE) run.dir=$(OUT)/sweep $(AT_ONCE)
ifeq ($(SCALE),embedded)
	test -d $(OUT)/mixed || OMP_NUM_THREADS=1 $(MULTIREF) refs mix experiment=online_toy run.dir=$(OUT)/mixed
endif
	$(MULTIREF) report $(OUT)/sweep --out $(OUT)/report $(if $(wildcard $(PUBLISHED)),--against $(PUBLISHED))

publish: $(STAMP) ## the last reproduction's results into runs/published, the README and `multiref help results`
	mkdir -p $(dir $(PUBLISHED))
	$(call publish_report,$(OUT)/report,$(PUBLISHED:.csv=))
	cp $(OUT)/report/figures/dpo-reward-model-against-alpha.png runs/published/offline.png
	cp $(OUT)/report/figures/grpo-toy-verifier-against-alpha.png runs/published/online.png
	cp $(OUT)/mixed/report/figures/*.png runs/published/mixed.png
	cp $(OUT)/mixed/scores.csv runs/published/mixed.csv && cp $(OUT)/mixed/mixed.json runs/published/mixed.json
	$(call update_results,$(PUBLISHED))
	if test -d runs/estimators; then $(call publish_report,runs/estimators/report,$(ESTIMATORS:.csv=)); fi
	$(call update_results,$(ESTIMATORS))
	test -d runs/sample_complexity || $(MULTIREF) theory study=sample_complexity run.dir=runs/sample_complexity
	cp runs/sample_complexity/results.json runs/published/sample-complexity.json
	cp runs/sample_complexity/report/figures/sample-complexity.png runs/published/sample-complexity.png
	$(update_captions)

worlds: $(STAMP) ## both experiments in five embedded worlds: what holds in all, in most, in one (an hour or more)
	OMP_NUM_THREADS=1 $(MULTIREF) sweep sweep=worlds_embedded run.dir=runs/worlds/sweep $(AT_ONCE)
	$(MULTIREF) report runs/worlds/sweep --out runs/worlds/report
	cp runs/worlds/report/worlds.csv $(WORLDS)
	$(BIN)/python -c "from pathlib import Path; from multiref_cli.reports import published, worlds; \
	  published.put_results(Path('$(RESULTS)'), '$(WORLDS)', worlds.worlds_table(worlds.read_claims(Path('$(WORLDS)'))))"

rivals: $(STAMP) ## one mix against its rivals in both experiments: the untrained mix, best of 8, imitation (ten minutes)
	test -d runs/rivals/selector/policy || { rm -rf runs/rivals/selector && OMP_NUM_THREADS=1 $(MULTIREF) train \
	  experiment=embedded/reward_model data=toy_preferences policy.path=toy:instruct algorithm.minimum_accuracy=0 \
	  tracking=off run.dir=runs/rivals/selector; }
	OMP_NUM_THREADS=1 $(MULTIREF) sweep sweep=rivals_embedded rivals.selector=runs/rivals/selector/policy \
	  run.dir=runs/rivals/sweep $(AT_ONCE)
	$(MULTIREF) report runs/rivals/sweep --out runs/rivals/report
	$(call publish_report,runs/rivals/report,$(RIVALS:.csv=))
	cp runs/rivals/report/figures/rivals.png runs/published/rivals.png
	$(call update_results,$(RIVALS))
	$(update_captions)

regimes: $(STAMP) ## which regularizer wins where, over training, distance of the references and beta (half an hour)
	OMP_NUM_THREADS=1 $(MULTIREF) sweep sweep=regimes run.dir=runs/regimes/sweep $(AT_ONCE)
	$(MULTIREF) report runs/regimes/sweep --out runs/regimes/report
	$(BIN)/python -c "from pathlib import Path; from multiref_cli.reports.scores import keep_scores; \
	  keep_scores(Path('runs/regimes/report'), Path('$(REGIMES:.cells.csv=)'), ($(REGIME_METRICS)))"
	cp runs/regimes/report/regimes.csv $(REGIMES) && cp runs/regimes/report/verdicts.csv $(REGIMES:.cells.csv=.verdicts.csv)
	cp runs/regimes/report/figures/regimes.png runs/published/regimes.png
	$(BIN)/python -c "from pathlib import Path; from multiref_cli.reports import published, regime_words; \
	  published.put_results(Path('$(RESULTS)'), '$(REGIMES)', regime_words.markdown(regime_words.read_regimes(Path('$(REGIMES)'))))"
	$(update_captions)

tuned: $(STAMP) ## both experiments with every arm at its own best beta and learning rate (half an hour)
	OMP_NUM_THREADS=1 $(MULTIREF) sweep sweep=tuned_embedded run.dir=runs/tuned/sweep $(AT_ONCE)
	$(MULTIREF) report runs/tuned/sweep --out runs/tuned/report
	$(call publish_report,runs/tuned/report,$(TUNED:.csv=))
	cp runs/tuned/report/figures/search-2.png runs/published/tuned.png
	$(BIN)/python -c "from pathlib import Path; from multiref_cli.reports import published, tuned; \
	  found = tuned.found_in(Path('runs/tuned/sweep')); tuned.write_found(found, Path('$(TUNED:.csv=.search.csv)')); \
	  published.put_results(Path('$(RESULTS)'), '$(TUNED:.csv=.search.csv)', tuned.search_table(found))"
	$(call update_results,$(TUNED))
	$(update_captions)

several: $(STAMP) ## does a mix of three references beat the best single one, in five embedded worlds? (two hours)
	OMP_NUM_THREADS=1 $(MULTIREF) sweep sweep=single_or_several run.dir=runs/several/sweep $(AT_ONCE) $(SETTINGS)
	$(MULTIREF) report runs/several/sweep --out runs/several/report
	$(BIN)/python -c "from pathlib import Path; from multiref_cli.reports.scores import keep_scores; \
	  keep_scores(Path('runs/several/report'), Path('$(SEVERAL:.contest.json=)'), ($(SEVERAL_METRICS)))"
	$(call publish_answers,runs/several/report,$(SEVERAL))
	$(update_captions)

smollm: $(STAMP) ## a real language model of 135 M parameters, offline and online (hours on two cores; SMOLLM=FOLDER ...)
	$(call train_smollm,chat,$(SMOLLM),$(ULTRAFEEDBACK))
	$(call train_smollm,math,$(SMOLLM),$(GSM8K))
	$(call train_smollm,helpful,$(SMOLLM),$(HH))
	$(call train_smollm,reward_model,$(ENCODER),$(HH))
	$(call train_smollm,sums,$(SMOLLM))
	OMP_NUM_THREADS=1 $(MULTIREF) sweep sweep=smollm_offline data.path=$(ULTRAFEEDBACK) run.dir=runs/smollm/offline \
	  $(AT_ONCE) $(SETTINGS)
	OMP_NUM_THREADS=1 $(MULTIREF) sweep sweep=smollm_online \
	  'references=[{name: sums, path: runs/smollm/sums/policy}, {name: instruct, path: $(SMOLLM)}]' \
	  run.dir=runs/smollm/online $(AT_ONCE) $(SETTINGS)
	$(call publish_smollm,runs/smollm/offline,$(SMOLLM_RESULTS:.csv=))
	cp runs/smollm/reward_model/results.json $(SMOLLM_RESULTS:.csv=.scorer.json)
	$(call publish_smollm,runs/smollm/online,$(SMOLLM_SUMS:.csv=))
	$(update_captions)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check multiref_cli tests && $(BIN)/ruff format --check multiref_cli tests && $(BIN)/mypy multiref_cli

# Each file states one claim and takes a few minutes; what was measured is appended to GPU_RESULTS.
GPU_RESULTS ?= tests/bench/results/gpu.jsonl
gpu: $(STAMP) ## what only an NVIDIA GPU can show, measured and asserted (without one: the same code at tiny sizes)
	MULTIREF_GPU_RESULTS=$(abspath $(GPU_RESULTS)) $(BIN)/python -m pytest tests/gpu -s -p no:xdist $(ARGS)

bench: $(STAMP) ## speed beside TRL and beside generate(), measured side by side
	for bench in tests/bench/bench_*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$bench || exit 1; done

clean: ## delete .venv and caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
