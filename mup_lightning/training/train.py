"""Train a model: from a configuration to a run folder with a result, and what the terminal says of it."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl

from mup_lightning import signals
from mup_lightning.callbacks import default_callbacks
from mup_lightning.callbacks.losses import ProgressBar, Validation
from mup_lightning.callbacks.noise_scale import NoiseScale
from mup_lightning.callbacks.throughput import Throughput
from mup_lightning.config import imported
from mup_lightning.config.schema import Config
from mup_lightning.data.datamodule import TokenDataModule
from mup_lightning.data.sampler import accumulation_steps
from mup_lightning.data.sources import note_changes
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError
from mup_lightning.optim.registry import resolve_rules
from mup_lightning.optim.schedule import lr_factor
from mup_lightning.training import hugging_face, loggers
from mup_lightning.training.checkpoint import STATE_FILE
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.run import Result, RunFolder, identity_of, is_first_process, resume_from
from mup_lightning.training.saving import Restore, SaveCheckpoints
from mup_lightning.training.trainer import enter, make_trainer, resolve, resolve_micro_batch
from mup_lightning.versions import versions


def train(config: Config, *, callbacks: Sequence[pl.Callback] = (), progress: bool = True, keep: bool = True) -> Result:
    """Train as configured, or continue a run.

    Everything that can be wrong with the configuration is refused before anything is written.

    Args:
        config: is resolved in place (`auto` becomes what this machine has; `rules` has all options in force).
        callbacks: more of them; they run before the run's own progress bar and checkpoints.
        progress: show the progress bar.
        keep: make a run folder, with logs, checkpoints and the result; False writes nothing at all.

    Raises UserError where a value, the data, the run folder or a checkpoint does not fit, Busy where another process
    trains this run, Diverged where the loss or the gradients became NaN or infinite.
    """
    begin, steps = time.perf_counter(), config.trainer.max_steps
    enter(config.trainer)
    accumulation, folder, writes = settle(config), RunFolder(config), keep and is_first_process()
    with folder.written() if writes else nullcontext():
        data = TokenDataModule(config.data, config.model.context, config.seed, steps)
        if config.data.verify and is_first_process():
            for corpus in config.data.sources:
                note_changes(corpus)
        identity = identity_of(config, data.corpora)
        start = resume_from(config, folder, identity, keep=keep)
        first_step = start.step if start else 0
        if first_step >= steps and (result := folder.finished_result()):
            return result

        module = GPT2Module(config)
        if config.model.weights is not None and not start:
            tokenizer = Tokenizer.find(config.data.tokenizer, *config.data.sources)
            hugging_face.load(module.model, Path(config.model.weights), tokenizer)
        throughput = Throughput(config.tokens_per_step, config.trainer, module.model.flops_per_token)
        validation = Validation(config.trainer.validate_every, throughput, data.corpora)
        noise = NoiseScale(config)
        logged = folder.logged_at(first_step) if start and writes else None
        measured = (throughput, validation, noise, first_step, logged, identity["corpus"])
        watching = default_callbacks(config, module.model, *measured, keep=keep)
        watching += [*callbacks, *([ProgressBar(throughput, validation)] if progress else [])]
        saving = SaveCheckpoints(folder.checkpoints, config, identity, throughput, folder.writer.check)
        watching += [*([saving] if keep else []), *([Restore(start)] if start else [])]
        trainer = make_trainer(config, folder, watching, accumulation, start.step if start else None, keep=keep)
        if writes:
            folder.open(config, start)
        trainer.fit(module, data, ckpt_path=str(start.path / STATE_FILE) if start else None, weights_only=True)

        done, newest = trainer.global_step, saving.last or start
        result = Result(
            finished=done >= steps,
            steps=done,
            first_step=first_step,
            validation_loss=validation.last if done >= steps else None,
            unigram_loss=data.corpora.unigram_loss,
            tokens=done * config.tokens_per_step,
            parameters=sum(info.numel for info in module.model.parameter_info.values()),
            seconds=time.perf_counter() - begin,
            tokens_per_second=throughput.tokens_per_second,
            checkpoint=str(newest.path) if newest else None,
            tensorboard=str(folder.tensorboard) if keep and "tensorboard" in config.run.loggers else None,
            versions=versions(),
            noise_scale=noise.tokens,
            bits_per_byte=validation.bits_per_byte if done >= steps else None,
        )
        if writes:
            folder.save_result(result)
        return result


def settle(config: Config) -> int:
    """Fill in every `auto` and all options of the rules, in place, and check what can be checked without the data.

    Returns how many micro-batches each process has in a step. Raises UserError where a value does not fit this machine,
    or another value.
    """
    trainer, data = config.trainer, config.data
    if config.model.weights is not None and config.run.resume is None:
        imported.check(config.model)
    loggers.check(config.run)
    resolve(trainer)
    resolve_rules(config)
    if trainer.deterministic and trainer.accelerator == "gpu" and config.recipe.optimizer == "sophia":
        raise UserError(
            "trainer.deterministic is true, but sophia draws labels by running sums, which no GPU adds up in a fixed "
            "order; set trainer.deterministic false"
        )
    lr_factor(config)
    resolve_micro_batch(config)
    return accumulation_steps(data.batch_size, data.sequences, trainer.devices * trainer.nodes)


def before(config: Config) -> str:
    """What is about to be trained, in a few lines."""
    model, recipe = config.model, config.recipe
    base = f" with k = {recipe.branch_depth} from base ({recipe.base_width}, {recipe.base_depth})"
    return (
        f"{model.family} of width {model.width}, depth {model.depth}, context {model.context}\n"
        f"{recipe.optimizer} at base learning rate {recipe.lr:g}, {recipe.parametrization}"
        f"{base if recipe.parametrization == 'mup' else ''}\n"
        f"{config.trainer.max_steps} steps of {config.data.batch_size} sequences from {config.data.said}; "
        f"run folder {config.run.root}/{config.run.name}" + "".join(f"\n{line}" for line in config.over_time())
    )


def after(config: Config, result: Result) -> str:
    """What came of it, where it is, and what to type next."""
    lines = ["", f"{result.steps} steps, {result.tokens:,} tokens, {result.parameters:,} parameters"]
    if result.validation_loss is not None:
        margin = result.unigram_loss - result.validation_loss
        comparison = f"{abs(margin):.4f} nats {'better' if margin > 0 else 'WORSE'} than token frequencies alone"
        lines.append(f"  validation loss  {result.validation_loss:.4f} nats per token, {comparison}")
        lines += [f"  bits per byte    {result.bits_per_byte:.4f}"] if result.bits_per_byte is not None else []
    elif result.finished:
        lines.append("  every step was done already; mup-lightning evaluate measures the validation loss")
    else:
        lines.append("  stopped by a signal before the last step")
    rate = f"{result.tokens_per_second:,.0f} tokens/s in training, " if result.tokens_per_second else ""
    lines += [f"  speed            {rate}{result.seconds:.0f} s in all", f"  checkpoint       {result.checkpoint}"]
    lines += [f"  TensorBoard      {result.tensorboard}"] if result.tensorboard else []
    if result.finished:
        curves = f"  tensorboard --logdir {config.run.root}    curves and feature norms of all runs"
        lines += ["", "next:", *([curves] if result.tensorboard else [])]
        if config.model.width < 256 and config.model.weights is None:  # the width of recipes/size/base.yaml
            name = f"{config.run.root}/{config.run.name}/config.yaml size=base run={config.run.name}-base"
            larger = f"  mup-lightning train -c {name} steps=30 batch=8 data.micro_batch=auto"
            lines.append(f"{larger}    a larger model, by the same recipe")
    elif not signals.in_job():
        lines += ["", "next:", "  the same command with resume=last continues it"]
    return "\n".join(lines)
