"""What a training is about to do and what came of it, for the terminal."""

from typing import TYPE_CHECKING

from mup_lightning import signals
from mup_lightning.config.schema import Config

if TYPE_CHECKING:
    from mup_lightning.training.train import Result

_BASE_WIDTH = 256
"""Width of recipes/size/base.yaml; to a run of this width or more no larger size is suggested."""


def before(config: Config) -> str:
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


def after(config: Config, result: "Result") -> str:
    """What came of it, where it is, and what to type next."""
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
            f"  tensorboard --logdir {config.run.root}    curves and feature norms of all runs",
            f"  mup-lightning evaluate {result.checkpoint}",
        ]
        if config.model.width < _BASE_WIDTH:
            lines.append("  mup-lightning train size=base steps=30 batch=8    a larger model, by the same recipe")
    elif not signals.in_job():
        lines += ["", "next:", "  the same command with resume=last continues it"]
    return "\n".join(lines)
