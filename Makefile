# Everyday commands; `make help` lists them. Each is a thin wrapper around `mup-lightning VERB`.

# The everyday overrides, e.g. make train SIZE=base OPT=adamw STEPS=200. Anything else: ARGS="--model.dropout 0.1".
SIZE     ?= nano
OPT      ?= muon_kimi
STRATEGY ?= $(DEFAULT_STRATEGY)
PARAM    ?= mup
DEVICES  ?=
NODES    ?=
BRANCH_DEPTH ?=
STEPS    ?=
BATCH    ?=
LR       ?=
WD       ?=
SEED     ?=
CARD     ?= data/austen.yaml
TOKENIZER ?= gpt2
DATA     ?=
RUN      ?= $(SIZE)-$(OPT)-$(PARAM)
RESUME   ?=
CONFIG   ?=
ARGS     ?=
PORT     ?= 6006

# Of `make submit` alone; unset ones are the cluster's own defaults.
SLURM    ?= default
GPUS     ?=
PARTITION ?=
TIME     ?=
ACCOUNT  ?=
QOS      ?=
CPUS     ?=
MEM      ?=
JOB      ?=
DRY      ?=
EXPERIMENT ?=
TASKS    ?= 1

# Of coord-check: what grows, and LN=0 for models without LayerNorm. Of tune and report: the small models, a table of losses.
AXIS     ?= width
LN       ?=
PROXY    ?= tune
RESULTS  ?= runs/sweeps/$(EXPERIMENT)

PYTHON   ?= python3
VENV     ?= .venv
PIP_ARGS ?=

BIN := $(VENV)/bin
MUP := $(BIN)/mup-lightning
# DeepSpeed would compile its operators while it is installed; what we use of it needs none.
PIP := DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

DEFAULT_STRATEGY = single

# An option of mup-lightning for every variable that is set.
opt = $(if $($(1)),$(2) $($(1)))
CARD_NAME := $(basename $(notdir $(CARD)))
CORPUS := $(if $(DATA),$(DATA),data/prepared/$(CARD_NAME)-$(TOKENIZER))
OPTIONS = -c recipes/gpt2.yaml -c recipes/size/$(SIZE).yaml -c recipes/optimizer/$(OPT).yaml \
  -c recipes/strategy/$(STRATEGY).yaml $(addprefix -c ,$(CONFIG)) \
  --recipe.parametrization $(PARAM) --data.path $(CORPUS) --data.tokenizer $(TOKENIZER) --run.name $(RUN) \
  $(call opt,DEVICES,--trainer.devices) $(call opt,NODES,--trainer.nodes) $(call opt,STEPS,--trainer.max_steps) \
  $(call opt,BATCH,--data.batch_size) \
  $(call opt,BRANCH_DEPTH,--recipe.branch_depth) $(call opt,LR,--recipe.lr) $(call opt,WD,--recipe.weight_decay) \
  $(call opt,SEED,--seed) $(call opt,RESUME,--run.resume) $(ARGS)

# A misspelt variable would be ignored, and something else be done than was asked for.
KNOWN := $(shell sed -n 's/^\([A-Z_]*\) *?=.*/\1/p' $(firstword $(MAKEFILE_LIST)))
STRANGE := $(foreach v,$(.VARIABLES),$(if $(findstring command line,$(origin $(v))),$(filter-out $(KNOWN) COORD_%,$(v))))
ifneq ($(strip $(STRANGE)),)
$(error error: there is no variable $(sort $(STRANGE)); variables are $(sort $(KNOWN)))
endif

# So would be one that the target does not read. Targets without a list here take all; a sub-make has its parent's.
TRAINING   = SIZE OPT STRATEGY PARAM DEVICES NODES BRANCH_DEPTH STEPS BATCH LR WD SEED CARD TOKENIZER DATA RUN RESUME CONFIG ARGS
CLUSTER    = SLURM GPUS PARTITION TIME ACCOUNT QOS CPUS MEM JOB DRY
OF_A_RUN   = RUN SIZE OPT PARAM ARGS
INSTALLING = PYTHON VENV PIP_ARGS
TAKES_data        = CARD TOKENIZER
TAKES_train       = $(TRAINING)
TAKES_submit      = $(if $(EXPERIMENT),EXPERIMENT TASKS ARGS,$(TRAINING)) $(CLUSTER)
TAKES_sweep       = EXPERIMENT ARGS
TAKES_tune        = $(filter-out RESUME,$(TRAINING)) PROXY
TAKES_report      = EXPERIMENT RESULTS ARGS
TAKES_probe       = OPT ARGS
TAKES_assumptions = OPT ARGS
TAKES_coord-check = OPT PARAM BRANCH_DEPTH STEPS BATCH LR WD CONFIG AXIS LN ARGS
TAKES_coord-table = COORD_%
TAKES_evaluate    = $(OF_A_RUN)
TAKES_export      = $(OF_A_RUN)
TAKES_figure      = $(OF_A_RUN)
TAKES_tensorboard = PORT
TAKES_bench       = ARGS
TAKES_test        = ARGS
HINT_sweep        = a sweep's values are in its file; for others: ARGS='--set trainer.max_steps=100 --set data.path=FOLDER'
HINT_submit       = $(if $(EXPERIMENT),$(HINT_sweep))
HINT_tune         = its small models are in recipes/experiment/PROXY.yaml
HINT_coord-check  = it trains seeds 1, 2, .. on the demo corpus; for others: ARGS='--seeds 5 --data.path FOLDER --data.tokenizer gpt2'

GIVEN := $(foreach v,$(.VARIABLES),$(if $(findstring command line,$(origin $(v))),$(v)))
ifeq ($(MAKELEVEL)$(filter-out $(patsubst TAKES_%,%,$(filter TAKES_%,$(.VARIABLES))),$(MAKECMDGOALS)),0)
NOT_TAKEN := $(sort $(filter-out $(INSTALLING) $(foreach goal,$(MAKECMDGOALS),$(TAKES_$(goal))),$(GIVEN)))
ifneq ($(NOT_TAKEN)$(MAKECMDGOALS),$(MAKECMDGOALS))
$(error error: make $(MAKECMDGOALS) takes no $(NOT_TAKEN), but $(sort $(foreach goal,$(MAKECMDGOALS),$(TAKES_$(goal))))$(foreach goal,$(MAKECMDGOALS),$(if $(HINT_$(goal)),; $(HINT_$(goal)))))
endif
endif

# Of what is on or off, other words would be taken for on.
NOT_A_SWITCH = $(strip $(foreach v,LN DRY,$(if $(filter-out 0 1,$($(v))),$(v)=$($(v)))))
ifneq ($(NOT_A_SWITCH),)
$(error error: $(NOT_A_SWITCH); expected 1 or 0)
endif
ifneq ($(and $(DATA),$(findstring command line,$(origin CARD))),)
$(error error: CARD=$(CARD) is a corpus to prepare, and DATA=$(DATA) one that is prepared; give one of the two)
endif

# Which sweep, has to be said: the longest one takes hours.
EXPERIMENT_FILE = recipes/experiment/$(EXPERIMENT).yaml
WHICH_EXPERIMENT = error: $(if $(EXPERIMENT),there is no $(EXPERIMENT_FILE),make $(MAKECMDGOALS) needs EXPERIMENT=NAME); it can be: $(filter-out tune%,$(basename $(notdir $(shell grep -l '^sweep:' recipes/experiment/*.yaml))))
ifneq ($(filter sweep,$(MAKECMDGOALS))$(and $(filter submit,$(MAKECMDGOALS)),$(EXPERIMENT)),)
ifneq ($(filter tune%,$(EXPERIMENT)),)
$(error error: $(EXPERIMENT) takes from a target what its file does not name; make tune PROXY=$(EXPERIMENT) SIZE=.. OPT=.. runs it)
endif
ifeq ($(wildcard $(EXPERIMENT_FILE)),)
$(error $(WHICH_EXPERIMENT))
endif
else ifneq ($(and $(filter report,$(MAKECMDGOALS)),$(filter file default,$(origin RESULTS))),)
ifeq ($(EXPERIMENT),)
$(error $(WHICH_EXPERIMENT); or RESULTS=FILE)
endif
endif

.DEFAULT_GOAL := help

.PHONY: help setup data train submit sweep probe assumptions coord-check coord-table evaluate report tune export tensorboard bench figure picture test lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "  variables: SIZE=$$(ls recipes/size | sed 's/\.yaml//' | paste -sd '|')  OPT=$$(ls recipes/optimizer | sed 's/\.yaml//' | paste -sd '|')"
	@echo "             STRATEGY=$$(ls recipes/strategy | sed 's/\.yaml//' | paste -sd '|')  PARAM=mup|sp  BRANCH_DEPTH=1|2  DEVICES= NODES= STEPS= BATCH= LR= WD= SEED="
	@echo "             CARD=data/NAME.yaml TOKENIZER=gpt2|bytes DATA=FOLDER RUN=NAME RESUME=last CONFIG=FILE.yaml ARGS='--any.option VALUE'"
	@echo "  of submit: SLURM=$$(ls recipes/slurm | sed 's/\.yaml//' | paste -sd '|')  GPUS= PARTITION= TIME= ACCOUNT= QOS= CPUS= MEM= JOB= DRY=1; a sweep: EXPERIMENT=NAME TASKS=N"

setup: $(VENV)/.run ## make the virtual environment and install pinned dependencies
	@echo "ready: make train, or after 'source $(VENV)/bin/activate' mup-lightning VERB"

data: card $(CORPUS)/manifest.json ## tokenise the corpus of CARD
	@:

train: check $(VENV)/.run $(if $(DATA),,$(CORPUS)/manifest.json) ## train SIZE with OPT; RESUME=last continues
	@$(MUP) train $(OPTIONS)

# Of several processes each has the whole model, unless STRATEGY says otherwise.
submit: DEFAULT_STRATEGY = $(if $(filter-out 0 1,$(NODES) $(GPUS) $(DEVICES)),ddp,single)
submit: $(if $(EXPERIMENT),,check) $(VENV)/.run $(if $(DATA)$(EXPERIMENT),,$(CORPUS)/manifest.json) ## train on a SLURM cluster: NODES= GPUS= TIME= ...; DRY=1 shows the script
	@$(MUP) submit -c recipes/slurm/$(SLURM).yaml \
	  $(if $(EXPERIMENT),--sweep recipes/experiment/$(EXPERIMENT).yaml --tasks $(TASKS) $(ARGS),$(OPTIONS)) \
	  $(call opt,GPUS,--slurm.gpus) $(call opt,PARTITION,--slurm.partition) $(call opt,TIME,--slurm.time) \
	  $(call opt,ACCOUNT,--slurm.account) $(call opt,QOS,--slurm.qos) $(call opt,CPUS,--slurm.cpus) \
	  $(call opt,MEM,--slurm.memory) $(call opt,JOB,--slurm.job) $(if $(filter 1,$(DRY)),--dry)

sweep: $(VENV)/.run ## run every configuration of recipes/experiment/EXPERIMENT.yaml once; the same command goes on after a stop
	@for tokenizer in bytes gpt2; do if grep -q "data/prepared/austen-$$tokenizer" $(EXPERIMENT_FILE); then \
	  $(MAKE) --no-print-directory data CARD=data/austen.yaml TOKENIZER=$$tokenizer || exit 1; fi; done
	@$(MUP) sweep $(EXPERIMENT_FILE) $(ARGS)

probe: $(VENV)/.run ## measure whether optimizer OPT steps as its family declares; ARGS=--all: all nine
	@$(MUP) probe $(if $(findstring --all,$(ARGS)),,--optimizer $(OPT)) $(ARGS)

COORD = $(MUP) coord-check -c recipes/gpt2.yaml -c recipes/optimizer/$(1).yaml -c recipes/experiment/coord_check.yaml

coord-check: check $(VENV)/.run ## do features keep their size as the model grows? AXIS=width|depth|both PARAM= BRANCH_DEPTH= LN=0
	@$(MAKE) --no-print-directory data CARD=data/austen.yaml TOKENIZER=bytes
	@$(call COORD,$(OPT)) $(if $(filter both,$(AXIS)),--model.depth 4) $(addprefix -c ,$(CONFIG)) --axis $(AXIS) --recipe.parametrization $(PARAM) \
	  $(call opt,BRANCH_DEPTH,--recipe.branch_depth) $(call opt,LR,--recipe.lr) $(call opt,STEPS,--trainer.max_steps) \
	  $(call opt,WD,--recipe.weight_decay) $(call opt,BATCH,--data.batch_size) \
	  $(if $(LN),--model.layer_norm $(if $(filter 0,$(LN)),false,true)) $(ARGS)

# The table of docs/method/coordinate_check.md. A check that is there is not repeated; SP stands beside k = 2. Width at k = 1 is
# left out: the depth is the base's there, where k = 1 and k = 2 are the same. Verdicts are results here, not errors.
COORD_OPTS ?= $(basename $(notdir $(wildcard recipes/optimizer/*.yaml)))
COORD_AXES ?= width depth
COORD_CHECKS = $(foreach opt,$(COORD_OPTS),$(foreach axis,$(COORD_AXES),$(addprefix runs/coordinates/$(opt)-$(axis)-,$(if $(filter width,$(axis)),,k1) k2)))

# Checks train at a constant rate without warm-up, which bears less than the peak of a schedule. So the rate is a quarter of
# the recipe's; Muon-Kimi and Shampoo bear their own.
COORD_LR_adamw  = 0.00048828125
COORD_LR_lion   = 0.000244140625
COORD_LR_sophia = 0.000244140625
COORD_LR_sgd    = 0.125
COORD_LR_soap   = 0.00048828125
COORD_LR_muon   = 0.015625
COORD_LR_sso    = 0.015625

# Shampoo and SOAP find eigenvectors of matrices of 4n at every step, and SSO's rule is slow, too: smaller models, fewer seeds.
COORD_width_shampoo = --seeds 4 --control_seeds 2 --widths 128,192,256
COORD_depth_shampoo = --seeds 4 --control_seeds 2 --model.width 64
COORD_width_soap = $(COORD_width_shampoo)
COORD_depth_soap = $(COORD_depth_shampoo)
COORD_width_sso = $(COORD_width_shampoo)
COORD_depth_sso = --seeds 5

coord-table: $(VENV)/.run ## coordinate checks of all optimizers over width and depth (hours), and one table
	@$(MAKE) --no-print-directory data CARD=data/austen.yaml TOKENIZER=bytes
	@$(MAKE) --no-print-directory $(COORD_CHECKS:=/coordinates.json)
	@$(MUP) coord-check --table $(COORD_CHECKS) | tee runs/coordinates/table.md

# The stem says it all, e.g. adamw-depth-k1.
coord_word = $(word $(1),$(subst -, ,$*))
runs/coordinates/%/coordinates.json:
	@$(call COORD,$(call coord_word,1)) --axis $(call coord_word,2) --recipe.branch_depth $(subst k,,$(call coord_word,3)) \
	  $(call opt,COORD_LR_$(call coord_word,1),--recipe.lr) $(COORD_$(call coord_word,2)_$(call coord_word,1)) \
	  $(if $(filter k1,$(call coord_word,3)),--alone --seeds 5) --out $(@D) || test -f $@

assumptions: $(VENV)/.run ## measure over depth what the recipe's theory takes for granted; OPT=NAME,.. checks other optimizers
	@$(MAKE) --no-print-directory data CARD=data/austen.yaml TOKENIZER=bytes
	@$(MUP) assumptions $(if $(findstring command,$(origin OPT)),--optimizer $(OPT)) $(ARGS)

tune: check $(VENV)/.run $(if $(DATA),,$(CORPUS)/manifest.json) ## find the base learning rate for SIZE and OPT on small models, and write it down
	@$(MUP) tune $(OPTIONS) $(if $(findstring --results,$(ARGS)),,--sweep recipes/experiment/$(PROXY).yaml)

# Beside a sweep's own table; of other tables there may be several in a folder.
REPORT = $(if $(wildcard $(RESULTS)/.),$(RESULTS),$(if $(filter results.csv,$(notdir $(RESULTS))),$(dir $(RESULTS)),runs/reports/$(basename $(notdir $(RESULTS)))))

report: $(VENV)/.run ## does the best value stay where it is? RESULTS=FILE, or the sweep EXPERIMENT; figures too
	@$(MUP) report transfer $(RESULTS) --out $(REPORT) $(ARGS)

export: $(VENV)/.run ## write RUN's newest weights to exported/RUN as a plain Hugging Face GPT-2
	@$(MUP) export runs/$(RUN) --out exported/$(RUN) $(ARGS)

evaluate: $(VENV)/.run ## validation loss of RUN's newest checkpoint
	@$(MUP) evaluate runs/$(RUN) $(ARGS)

tensorboard: $(VENV)/.run ## look at all runs in a browser; PORT=6006
	@find runs -name '*tfevents*' 2>/dev/null | grep -q . || \
	  { echo "error: no run in runs/ has TensorBoard logs yet; make train makes one" >&2; exit 1; }
	@echo "open in a browser (Ctrl-C ends it):"
	@echo "  http://localhost:$(PORT)/#custom_scalars   the panels: is it learning, is it stable, does the condition hold?"
	@echo "  http://localhost:$(PORT)/#text             what was trained, and how to read the panels"
	@$(BIN)/tensorboard --logdir runs --port $(PORT) --window_title mup_lightning

bench: $(VENV)/.test ## our speed and memory against a plain PyTorch loop
	@$(BIN)/python -m tests.benchmarks $(ARGS)

figure: $(VENV)/.run ## draw RUN's feature norms over depth and time
	@$(MUP) figure runs/$(RUN) $(ARGS)

# The README's picture: small trainings over widths and depths. A run that is there is not repeated.
PICTURE := $(foreach param,sp mup,$(foreach size,64x4 128x4 256x4 512x4 64x8 64x16 64x32 64x64,runs/picture/$(param)-$(size)))

picture: $(VENV)/.run ## train 16 tiny models and draw the README's picture of their feature norms
	@$(MAKE) --no-print-directory data CARD=data/austen.yaml TOKENIZER=bytes
	@$(MAKE) --no-print-directory $(PICTURE:=/result.json)
	@$(MUP) figure $(PICTURE) --out docs/figures/feature_norms.png

# The stem says it all, e.g. sp-64x4: parametrization, width, depth. The weights are not needed afterwards.
picture_word = $(word $(1),$(subst -, ,$(subst x, ,$*)))
runs/picture/%/result.json:
	@rm -rf $(@D)
	@$(MUP) train -c recipes/gpt2.yaml -c recipes/experiment/readme_picture.yaml --run.name $* \
	  --recipe.parametrization $(call picture_word,1) --model.width $(call picture_word,2) --model.depth $(call picture_word,3)
	@rm -rf $(@D)/checkpoints

test: $(VENV)/.test ## run the tests
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.lint ## formatter, linter, types, import direction
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.lint ## reformat the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean: ## remove prepared corpora and caches; runs and the virtual environment stay
	@rm -rf data/prepared .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# Every choice by name is a file; say so before anything is installed or prepared.
.PHONY: check card
card:
	@if [ -z "$(DATA)" ] && [ ! -f "$(CARD)" ]; then \
	  echo "error: there is no $(CARD); data/README.md says how to write a card for your own text. There are: $$(ls data/*.yaml | paste -sd ' ')" >&2; \
	  exit 1; fi

check: card
	@for f in size/$(SIZE) optimizer/$(OPT) strategy/$(STRATEGY); do \
	  if [ ! -f recipes/$$f.yaml ]; then \
	    echo "error: there is no recipes/$$f.yaml; $$(dirname $$f) can be: $$(ls recipes/$$(dirname $$f) | sed 's/\.yaml//' | paste -sd ' ')" >&2; \
	    exit 1; fi; done

data/prepared/$(CARD_NAME)-$(TOKENIZER)/manifest.json: $(CARD) | $(VENV)/.run
	@$(MUP) data prepare $(CARD) --tokenizer $(TOKENIZER) --out $(@D)
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }

# torch comes first and pinned, so that nothing else chooses another build of it.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (once; a minute or two)"
	@$(PIP) torch==2.13.0
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.run
	@$(PIP) -e '.[lint]'
	@touch $@
