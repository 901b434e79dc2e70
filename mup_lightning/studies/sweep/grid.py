"""From a sweep file to its trials: each built, checked, costed and hashed before the first one runs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from operator import attrgetter
from typing import Any

from mup_lightning.config.identity import identity, without_added
from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config, RunConfig, leaves
from mup_lightning.data.datamodule import TokenDataModule
from mup_lightning.data.mixture import Corpora
from mup_lightning.data.sources import note_changes
from mup_lightning.errors import UserError, located
from mup_lightning.optim.registry import SECTIONS, options_in_force, used_sections
from mup_lightning.plan.plan import plan
from mup_lightning.spectral.base import BaseFactors
from mup_lightning.studies.sweep.spec import Grid, Sweep
from mup_lightning.tables import power_of_two
from mup_lightning.training.checkpoint import Checkpoint
from mup_lightning.training.train import settle
from mup_lightning.typed import unknown_key

_HASHED_RULES = "adamw muon sgd lion sophia shampoo soap sso".split()
"""Sections of rules that every hash covers, used or not, as those of published tables do. Do not add to them: a rule
that is not among them is in the hashes of the runs that use it."""

_OVERHEAD, _OVERHEAD_PER_BLOCK = 1.0e8, 6.0e7
"""What a micro-batch costs on top of its operations (interpreter, hooks), in operations of one core. Only the order of
the runs and the first estimate of their time depend on it."""


@dataclass(frozen=True)
class Checked:
    """What is known of a run before it begins."""

    corpus: str  # its hash
    unigram_loss: float  # nats per token
    tokens: int  # of the run
    flops: float  # of the run
    work: float  # expected time, in operations of one busy core
    memory: int  # bytes at the peak
    parameters: int


class Checker:
    """Checks configurations one by one; a corpus is read and verified once."""

    def __init__(self) -> None:
        self._opened: dict[tuple[Any, ...], Corpora] = {}

    def check(self, config: Config) -> Checked:
        """Check a configuration as `train` would, and fill in what `auto` means. UserError: no study can run it."""
        trainer, data = config.trainer, config.data
        if trainer.strategy != "single":
            processes = "the runs of a study take one process each (single), and --workers says how many run at once"
            raise UserError(f"trainer.strategy is {trainer.strategy}; {processes}")
        micro_batches = settle(config)
        planned = plan(config, device="cpu" if trainer.accelerator == "cpu" else "cuda")
        key = (*data.sources.items(), data.tokenizer, config.model.context, data.val_tokens)
        if key not in self._opened:
            TokenDataModule(data, config.model.context, config.seed, trainer.max_steps).setup()
            for corpus in data.sources:
                note_changes(corpus)
            self._opened[key] = Corpora(data)
        corpora, steps = self._opened[key], trainer.max_steps
        flops, validations = planned.flops_of(steps), max(1, steps // (trainer.validate_every or steps))
        seen = validations * corpora.validation_tokens(data.val_tokens)
        validating = seen * planned.flops.matmul_per_token / 3  # forward alone
        overhead = steps * micro_batches * (_OVERHEAD + _OVERHEAD_PER_BLOCK * config.model.depth)
        of_text, work = (corpora.hash, corpora.unigram_loss), flops + validating + overhead
        return Checked(*of_text, planned.tokens, flops, work, planned.memory[0].total, planned.parameter_count)


@dataclass
class Trial:
    """One configuration of a sweep, resolved; its run folder is the sweep's to choose."""

    config: Config
    hash: str  # of everything that determines its numbers, the contents of the corpus included
    checked: Checked
    axes: tuple[str, ...]  # "width", "depth", "both", "tokens" or "batch": of every grid that it belongs to
    key: str  # the dotted key that is swept
    varied: dict[str, Any]  # dotted key -> value, of all keys that vary in the sweep
    label: str = ""  # what distinguishes it from the others, such as "mup width=64 lr=2^-7 seed=1"
    start: Checkpoint | None = None  # a checkpoint of another run that it continues from; None: it is a whole run

    @property
    def value(self) -> float:
        """The swept value."""
        return float(look_up(self.config, self.key))


def expand(sweep: Sweep, defaults: Mapping[str, Any] | None = None, checker: Checker | None = None) -> list[Trial]:
    """All trials, those of most work first; those that several grids name are one.

    `defaults` (dotted key -> value) are below everything that the sweep says. Raises UserError for a configuration that
    training would refuse, naming the file, the grid and the values, or where nothing is swept.
    """
    keys = _varying(sweep.grids)
    checker = checker or Checker()
    trials: dict[str, Trial] = {}
    for number, grid in enumerate(sweep.grids, start=1):
        for combination in product(*grid.vary.values()):
            values = dict(zip(grid.vary, combination, strict=True))
            where = ", ".join(f"{key} {value}" for key, value in values.items())
            with located(f"{sweep.file}: grid {number}" + f" at {where}" * bool(where)):
                said = grid.set | values
                tokens = said.pop("tokens", None)
                config = build_config([defaults or {}, *grid.configs, said])
                if tokens is not None:
                    config = replace(config, trainer=replace(config.trainer, max_steps=_steps(tokens, config)))
                swept = look_up(config, sweep.value)
                if isinstance(swept, bool) or not isinstance(swept, int | float):
                    what = f"{sweep.value}, which is {swept!r:.40}"
                    raise UserError(f"sweep.value is {what}; expected the key of a number, such as recipe.lr")
                if config.run.resume is not None:
                    raise UserError("run.resume is set; a sweep starts every run anew")
                checked = checker.check(config)
            config.run = RunConfig()
            name = config_hash(config, checked.corpus)
            axes = (*trials[name].axes, grid.size) if name in trials else (grid.size,)
            varied = {key: look_up(config, key) for key in keys}
            trials[name] = Trial(config, name, checked, tuple(dict.fromkeys(axes)), sweep.value, varied)
    if all(trial.value <= 0 for trial in trials.values()):
        zero = f"{sweep.file}: sweep.value is {sweep.value}, which is 0 or less in every configuration"
        raise UserError(f"{zero}; give it values above 0 under vary, or name another key")
    _label(list(trials.values()), keys)
    return sorted(trials.values(), key=lambda trial: (-trial.checked.work, trial.hash))


def _steps(tokens: Any, config: Config) -> int:
    """The steps in which a run sees so many tokens. Raises UserError where they are not whole."""
    if not isinstance(tokens, int) or tokens < 1 or tokens % config.tokens_per_step:
        step = f"data.batch_size {config.data.batch_size} x model.context {config.model.context}"
        raise UserError(f"tokens is {tokens!r:.40}; expected a whole multiple of those in a step, {step}")
    return tokens // config.tokens_per_step


def _varying(grids: tuple[Grid, ...]) -> list[str]:
    """Keys that a grid varies, or that grids set differently from one another; of a run's tokens, its steps."""
    keys = [key for grid in grids for key in grid.vary]
    for key in (key for grid in grids for key in grid.set):
        keys += [key] * any(grid.set.get(key, grids) != grids[0].set.get(key, grids) for grid in grids)
    return list(dict.fromkeys("trainer.max_steps" if key == "tokens" else key for key in keys))


def _label(trials: list[Trial], keys: list[str]) -> None:
    plain = ["recipe.optimizer", "recipe.parametrization"]
    shown = dict.fromkeys([*plain, "recipe.branch_depth", *keys])
    differing = [key for key in shown if len({str(look_up(trial.config, key)) for trial in trials}) > 1]
    for trial in trials:
        words = []
        for key in differing:
            value = look_up(trial.config, key)
            if key == "recipe.branch_depth" and trial.config.recipe.parametrization != "mup":
                continue  # SP has none
            text = power_of_two(value) if isinstance(value, float) and 0 < value < 1 else str(value)
            name = ".".join(key.split(".")[-2 if key.startswith("recipe.base.") else -1 :])
            words.append(text if key in plain else f"{name}={text}")
        trial.label = " ".join(words) or trial.hash[:12]


def config_hash(config: Config, corpus: str) -> str:
    """sha256 of all that determines the numbers of a run: what must be equal to continue it, its length and devices."""
    trainer, data = config.trainer, config.data
    more: dict[str, Any] = {"max_steps": trainer.max_steps, "accelerator": trainer.accelerator}
    more |= {"micro_batch": data.micro_batch, "val_tokens": data.val_tokens}
    hashed = dict.fromkeys([*_HASHED_RULES, *used_sections(config.recipe.optimizer)])
    rules = {name: options_in_force(config.rules, name) for name in hashed}
    plain = identity(config) | without_added({"rules": rules}) | {"run": more, "corpus": corpus}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def look_up(config: Config, key: str) -> Any:
    """The value of a dotted key; of a rule's option, or of a role's base value, the one in force. UserError: none."""
    section, _, option = key.removeprefix("rules.").partition(".")
    try:
        if key.startswith("rules.") and section in SECTIONS:
            return options_in_force(config.rules, section)[option]
        if key.startswith("recipe.base."):
            label, _, factor = key.removeprefix("recipe.base.").partition(".")
            return getattr(config.recipe.base.get(label, BaseFactors()), factor)
        return attrgetter(key)(config)
    except (AttributeError, KeyError):
        raise unknown_key(key, list(leaves(asdict(config)))) from None
