# Everyday commands; `make help` lists them. Each passes words on to `mup-lightning VERB`, which checks and explains them:
# make train SIZE=base STEPS=200 runs mup-lightning train size=base steps=200. Anything else: ARGS="--model.dropout 0.1".
# Variables: SIZE MODEL OPT STRATEGY PARAM BRANCH_DEPTH DEVICES NODES STEPS BATCH LR WD SEED RUN RESUME CONFIG ARGS (files of recipes/)
# Variables: CARD TOKENIZER DATA (the corpus), SLURM GPUS TIME PARTITION ACCOUNT QOS CPUS MEM JOB DRY (make submit)
SIZE      ?= nano
OPT       ?= muon_kimi
PARAM     ?= mup
RUN       ?= $(SIZE)$(MODEL:%=-%)-$(OPT)-$(PARAM)
CARD      ?= data/austen.yaml
TOKENIZER ?= gpt2
DATA      ?= data/prepared/$(basename $(notdir $(CARD)))-$(TOKENIZER)
PYTHON    ?= python3
VENV      ?= .venv

# Variable:word of the program. All others are their own names in small letters: STEPS=50 is steps=50.
WORDS := OPT:optimizer LN:model.layer_norm GPUS:slurm.gpus PARTITION:slurm.partition TIME:slurm.time JOB:slurm.job \
  ACCOUNT:slurm.account QOS:slurm.qos CPUS:slurm.cpus MEM:slurm.memory
GIVEN := $(filter-out ARGS PYTHON VENV PIP_ARGS,$(foreach v,$(.VARIABLES),$(if $(findstring command,$(origin $v)),$v)))
name = $(or $(patsubst $1:%,%,$(filter $1:%,$(WORDS))),$(shell echo $1 | tr A-Z a-z))
q = '$(subst ','\'',$1)'
# All that the command line gives except $1, which the target has used, each one word. The program refuses what it does not know.
given = $(foreach v,$(filter-out $1,$(GIVEN)),$(call q,$(call name,$v)=$($v))) $(ARGS)
# Defaults come first, so that files win over them, and what the command line gives wins over files.
training = -c recipes/gpt2.yaml size=$(SIZE) $(MODEL:%=model=%) optimizer=$(OPT) $(STRATEGY:%=strategy=%) param=$(PARAM) $(call q,run=$(RUN)) \
  tokenizer=$(TOKENIZER) $(call q,data=$(DATA)) $(addprefix -c ,$(CONFIG)) $(call given,SIZE MODEL OPT STRATEGY CONFIG CARD $1)
BIN := $(VENV)/bin
MUP := $(BIN)/mup-lightning
PIP := DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
CORPUS := $(if $(filter DATA,$(GIVEN)),,corpus)
AUSTEN := data/prepared/austen-bytes/manifest.json data/prepared/austen-gpt2/manifest.json
$(if $(and $(filter CARD,$(GIVEN)),$(filter DATA,$(GIVEN))),$(error error: give CARD= to prepare a corpus, or DATA=))
table = $(patsubst %/results.csv,%,$(or $(RESULTS),runs/sweeps/$(EXPERIMENT)))
.PHONY: corpus test-many test-others $(shell sed -n 's/^\([a-z-]*\):.*\#\#.*/\1/p' Makefile)
help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1:\t\2/p; s/^# Variables: /  /p' Makefile | expand -t 22
setup: $(VENV)/.run ## make the virtual environment and install pinned dependencies
	@echo "ready: make train, or after 'source $(BIN)/activate' mup-lightning VERB"
data: $(VENV)/.run ## tokenise the corpus of CARD
	@$(MUP) data prepare $(call q,$(CARD)) tokenizer=$(TOKENIZER) $(call q,out=$(DATA)) $(call given,CARD TOKENIZER)
train: $(VENV)/.run ## train SIZE with OPT; RESUME=last continues
	@$(MUP) config $(training) > /dev/null
	@$(if $(CORPUS),$(MAKE) --no-print-directory $(CORPUS))
	@$(MUP) train $(training)
submit: STRATEGY ?= $(if $(filter-out 0 1,$(NODES) $(GPUS) $(DEVICES)),ddp)
submit: $(VENV)/.run $(if $(EXPERIMENT),,$(CORPUS)) ## train on a SLURM cluster: NODES= GPUS= DRY=1; a sweep: EXPERIMENT= TASKS=
	@$(MUP) submit slurm=$(or $(SLURM),default) \
	  $(if $(EXPERIMENT),sweep=recipes/experiment/$(EXPERIMENT).yaml $(call given,EXPERIMENT SLURM),$(call training,SLURM))
sweep: $(VENV)/.run $(AUSTEN) ## run every configuration of recipes/experiment/EXPERIMENT.yaml once; the same command continues it
	@$(MUP) sweep $(call q,experiment=$(EXPERIMENT)) $(call given,EXPERIMENT)
tune: $(VENV)/.run $(CORPUS) ## find the base learning rate for SIZE and OPT on small models, and write it down
	@$(MUP) tune $(if $(findstring --results,$(ARGS)),,sweep=recipes/experiment/$(or $(PROXY),tune$(if $(findstring --law,$(ARGS)),_law)).yaml) $(call training,PROXY)
report: $(VENV)/.run ## does the best value stay where it is? RESULTS=FILE, or the sweep EXPERIMENT; figures too
	@$(MUP) report transfer $(call q,$(table)) \
	  $(call q,out=$(if $(filter %.csv %.json,$(table)),runs/reports/$(basename $(notdir $(table))),$(table))) $(call given,RESULTS EXPERIMENT)
probe: $(VENV)/.run ## measure whether optimizer OPT steps as its family declares; ARGS=--all: all of them
	@$(MUP) probe $(if $(findstring --all,$(ARGS)),,optimizer=$(OPT)) $(call given,OPT)
assumptions: $(VENV)/.run $(firstword $(AUSTEN)) ## measure over depth what the recipe's theory assumes; OPT=NAME,.. checks other optimizers
	@$(MUP) assumptions $(call given)
coord-check: $(VENV)/.run $(firstword $(AUSTEN)) ## do features keep their size as the model grows? AXIS=width|depth|both PARAM= BRANCH_DEPTH= LN=0
	@$(MUP) coord-check optimizer=$(OPT) experiment=coord_check $(if $(filter both,$(AXIS)),model.depth=4) $(addprefix -c ,$(CONFIG)) $(call given,OPT CONFIG)
coord-table: $(VENV)/.run $(firstword $(AUSTEN)) ## coordinate checks of all optimizers over width and depth (hours), and one table
	@$(MUP) coord-check --all recipes/experiment/coordinates.yaml $(call given)
gpu-check: $(VENV)/.run ## is training right on this machine's GPUs, how fast is it, and what memory does it take? 10 minutes
	@$(MUP) gpu-check $(call given)
evaluate: $(VENV)/.run ## loss, perplexity and bits per byte of RUN's newest checkpoint
	@$(MUP) evaluate $(call q,runs/$(RUN)) $(call given,RUN SIZE MODEL OPT PARAM)
export: $(VENV)/.export ## write RUN's newest weights to exported/RUN as a plain Hugging Face model
	@$(MUP) export $(call q,runs/$(RUN)) $(call q,out=exported/$(RUN)) $(call given,RUN SIZE MODEL OPT PARAM)
figure: $(VENV)/.run ## draw RUN's feature norms over depth and time
	@$(MUP) figure $(call q,runs/$(RUN)) $(call given,RUN SIZE MODEL OPT PARAM)
picture: $(VENV)/.run $(firstword $(AUSTEN)) ## train 16 tiny models and draw the README's picture of their feature norms
	@$(MUP) sweep experiment=readme_picture $(call given)
	@$(MUP) figure runs/sweeps/readme_picture/runs/* out=docs/figures/feature_norms.png
tensorboard: $(VENV)/.run ## look at all runs in a browser; PORT=6006
	@echo "open http://localhost:$(or $(PORT),6006)/#custom_scalars (is it learning, stable, does the condition hold?); Ctrl-C ends it"
	@$(BIN)/tensorboard --logdir runs --port $(or $(PORT),6006) --window_title mup_lightning
bench: $(VENV)/.test ## our speed and memory against a plain PyTorch loop
	@$(BIN)/python -m tests.benchmarks $(ARGS)
test: $(VENV)/.test ## run the tests, in three groups at a time
	@$(if $(ARGS),$(BIN)/python -m pytest $(ARGS),$(MAKE) --no-print-directory -j3 test-distributed test-slurm-data-model-plan test-others)
test-distributed test-slurm-data-model-plan test-others: ; @$(BIN)/python -m pytest $(if $(filter %others,$@),$(addprefix --ignore=tests/,distributed slurm data model plan),$(addprefix tests/,$(subst -, ,$(@:test-%=%))))
test-fast: $(VENV)/.test ## run the tests of an everyday change, in under two minutes
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)
lint: $(VENV)/.lint ## formatter, linter, types, import direction
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports
format: $(VENV)/.lint ## reformat the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .
clean: ## remove prepared corpora and caches; runs and the virtual environment stay
	@rm -rf data/prepared .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
corpus: $(VENV)/.run ; @$(MUP) data prepare $(call q,$(CARD)) --tokenizer $(TOKENIZER) --out $(call q,$(DATA)) > /dev/null
data/prepared/austen-%/manifest.json: data/austen.yaml | $(VENV)/.run
	@$(MUP) data prepare $< --tokenizer $* --out $(@D) && touch $@
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer: PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: on Debian: apt install python3-venv" >&2; exit 1; }
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (once; a minute or two)"
	@$(PIP) torch==2.13.0 && $(PIP) -e . && touch $@
$(VENV)/.test $(VENV)/.lint $(VENV)/.export: $(VENV)/.%: $(VENV)/.run
	@$(PIP) -e '.[$*]' && touch $@
