"""`mup-lightning train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mup_lightning import signals
from mup_lightning.config.load import build, config_parser, parse

if TYPE_CHECKING:
    from mup_lightning.config.schema import Config
    from mup_lightning.training.train import Result

EXAMPLE = "mup-lightning train -c recipes/size/base.yaml -c recipes/optimizer/adamw.yaml --run.name first"

_BASE_WIDTH = 256
"""Of recipes/size/base.yaml, which is no larger model for one that is as wide."""


def main(argv: list[str]) -> int:
    """Train, and say at the end what came of it."""
    parser = config_parser(
        "mup-lightning train",
        "Train a GPT-2 whose learning rates, weight decays, inits and multipliers are derived from a tuned base model.",
        EXAMPLE,
    )
    config = build(parser, parse(parser, argv))

    from mup_lightning.training.hardware import is_first_process, tune_allocator

    tune_allocator()
    from mup_lightning.training.train import train

    if is_first_process():
        print(first_screen(config), flush=True)
    result = train(config)
    if is_first_process():
        print(last_screen(config, result), flush=True)
    if result.finished:
        return 0
    if not signals.in_job():
        return 130
    if not is_first_process():  # an exit status other than 0 would make srun kill the process that requeues
        return 0

    from mup_lightning.slurm.requeue import requeue

    return 0 if requeue(result.steps, result.first_step) else 130


def first_screen(config: Config) -> str:
    """What is about to be trained, in a few lines."""
    model, recipe = config.model, config.recipe
    scaled = (
        f"muP with branch depth k = {recipe.branch_depth}, scaled from base ({recipe.base_width}, {recipe.base_depth})"
        if recipe.parametrization == "mup"
        else "SP: base values, unscaled"
    )
    return (
        f"GPT-2 of width {model.width}, depth {model.depth}, context {model.context}\n"
        f"{recipe.optimizer} at base learning rate {recipe.lr:g}, {scaled}\n"
        f"{config.trainer.max_steps} steps of {config.data.batch_size} sequences from {config.data.path}; "
        f"run folder {config.run.root}/{config.run.name}"
    )


def last_screen(config: Config, result: Result) -> str:
    """What came of it, where it is, and what to type next."""
    resume = "the same command with --run.resume last"
    lines = ["", f"{result.steps} steps, {result.tokens:,} tokens, {result.parameters:,} parameters"]
    if result.validation_loss is not None:
        margin = result.unigram_loss - result.validation_loss
        comparison = f"{abs(margin):.4f} nats {'better' if margin > 0 else 'WORSE'} than word frequencies alone"
        lines += [
            f"  validation loss  {result.validation_loss:.4f} nats per token, {comparison}",
            f"  unigram model    {result.unigram_loss:.4f} nats per token",
        ]
    elif result.finished:
        lines.append("  every step was done already; mup-lightning evaluate measures the validation loss")
    else:
        lines.append("  stopped by a signal before the last step")
    lines += [
        f"  speed            {result.tokens_per_second:,.0f} tokens/s in training, {result.seconds:.0f} s in all",
        f"  checkpoint       {result.checkpoint}",
        f"  TensorBoard      {result.tensorboard}",
    ]
    if result.finished:
        lines += [
            "",
            "next:",
            f"  tensorboard --logdir {config.run.root}",
            f"  mup-lightning evaluate {result.checkpoint}",
        ]
        if config.model.width < _BASE_WIDTH:
            lines.append("  mup-lightning train -c recipes/size/base.yaml    a larger model, by the same recipe")
    elif not signals.in_job():
        lines += ["", "next:", f"  {resume}"]
    return "\n".join(lines)
