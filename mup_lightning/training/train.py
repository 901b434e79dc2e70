"""Train a model: from a configuration to a run folder with a result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import lightning.pytorch as pl

from mup_lightning import signals, versions
from mup_lightning.callbacks.curves import Curves
from mup_lightning.callbacks.dashboard import Dashboard
from mup_lightning.callbacks.divergence import Divergence
from mup_lightning.callbacks.feature_norms import FeatureNorms
from mup_lightning.callbacks.gradient_norms import GradientNorms
from mup_lightning.callbacks.losses import StepLosses
from mup_lightning.callbacks.peak_flops import peak_of
from mup_lightning.callbacks.preemption import Preemption
from mup_lightning.callbacks.progress import ProgressBar
from mup_lightning.callbacks.spectral_monitor import SpectralNorms
from mup_lightning.callbacks.speed import Speed
from mup_lightning.callbacks.stopping import Interrupt
from mup_lightning.callbacks.throughput import Throughput
from mup_lightning.callbacks.update_check import UpdateCheck
from mup_lightning.callbacks.validation import Validation
from mup_lightning.config.schema import Config
from mup_lightning.data.datamodule import TokenDataModule
from mup_lightning.data.sampler import accumulation_steps
from mup_lightning.data.shards import Manifest, check_vocabulary, manifest_hash
from mup_lightning.optim.schedule import warmup_cosine
from mup_lightning.plan.plan import plan
from mup_lightning.training import hardware, support
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.pages import pages
from mup_lightning.training.resume import is_own, resume_from, say_new_length, set_later_aside
from mup_lightning.training.run_folder import RunFolder, plain
from mup_lightning.training.saving import RestoreStates, SaveCheckpoints
from mup_lightning.training.tensors import Shards
from mup_lightning.training.trainer import make_trainer


@dataclass(frozen=True)
class Result:
    """What a run came to; also result.json.

    Attributes:
        finished: false where a signal stopped it before its last step.
        steps: optimizer steps done, over all resumes.
        first_step: how many of them were done before this process's part of the run.
        validation_loss: nats per token after the last step; None where the run was stopped before it.
        unigram_loss: nats per token of a unigram model of the same corpus: what frequencies alone are worth.
        tokens: trained on, over all resumes.
        parameters: of the model.
        seconds: wall time of this process's part of the run, start-up and validation included.
        tokens_per_second: in training steps alone.
        checkpoint: the newest one.
        tensorboard: folder of the event files; None where nothing was kept.
        versions: of what computed it, and the git revision.
    """

    finished: bool
    steps: int
    first_step: int
    validation_loss: float | None
    unigram_loss: float
    tokens: int
    parameters: int
    seconds: float
    tokens_per_second: float
    checkpoint: str | None
    tensorboard: str | None
    versions: dict[str, str | None]


def train(config: Config, *, callbacks: Sequence[pl.Callback] = (), progress: bool = True, keep: bool = True) -> Result:
    """Train as configured, or continue a run.

    Everything that can be wrong with the configuration is refused before anything is written.

    Args:
        config: is resolved in place (`auto` becomes what this machine has).
        callbacks: more of them, told of every step before the run's own progress bar and checkpoints.
        progress: show the progress bar.
        keep: make a run folder, with logs and checkpoints; False writes nothing at all.

    Returns:
        The result, which stands in the run folder too.

    Raises:
        UserError: a value, the data, the run folder or a checkpoint does not fit.
        Diverged: the loss or the gradients became NaN or infinite.
    """
    begin = time.perf_counter()
    hardware.resolve(config.trainer)
    support.check(config)
    world_size = config.trainer.devices * config.trainer.nodes
    accumulation = accumulation_steps(config.data.batch_size, config.data.micro_batch, world_size)
    warmup_cosine(config.schedule, config.recipe.lr, config.trainer.max_steps)  # refuses an impossible schedule
    manifest = Manifest.load(config.data.path)
    check_vocabulary(manifest, config.data.tokenizer)
    identity = plain(config.identity()) | {"corpus": manifest_hash(manifest)}

    folder = RunFolder(config)
    start = resume_from(config, folder, identity)
    again = config.run.resume == "auto"  # what an earlier life of the same job has left without a checkpoint may go
    if keep and hardware.is_first_process() and not again and not is_own(start, folder):
        folder.refuse_used()
    first_step = start.step if start else 0
    if first_step >= config.trainer.max_steps and (before := folder.finished_result()):
        return Result(**before)
    if start:
        say_new_length(start, config)

    datamodule = TokenDataModule(config.data, config.model.context, config.seed, config.trainer.max_steps)
    datamodule.setup()
    module = GPT2Module(config)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if start:
        Shards(start.path).load_weights(module.model)
    if keep and hardware.is_first_process():
        folder.save_config(config, first_step)
        if start:
            set_later_aside(start, folder)

    tokens_per_step = config.data.batch_size * config.model.context
    throughput = Throughput(tokens_per_step)
    validation = Validation(config.trainer.validate_every, throughput)
    saving = SaveCheckpoints(
        folder.checkpoints,
        config.trainer.checkpoint_every,
        config.trainer.keep_checkpoints,
        plain(asdict(config)),
        identity,
        throughput,
    )
    interrupt = Preemption() if signals.in_job() else Interrupt()
    log_every = config.trainer.log_every
    losses = StepLosses(log_every, config.trainer.checkpoint_every if keep else 0)
    watching: list[pl.Callback] = [interrupt, throughput, losses, Curves(losses, tokens_per_step), validation]
    if keep:
        planned = plan(config)
        peak = peak_of(config.trainer.peak_flops, config.trainer.precision)
        watching.append(GradientNorms(log_every))
        watching.append(Speed(log_every, throughput, planned.flops.convention_per_token, peak))
        if start is None or not folder.has_logs():
            watching.append(Dashboard(pages(config, planned)))
    if config.trainer.spike_sigmas:
        limits = config.trainer.spike_sigmas, config.trainer.spike_window, config.trainer.spike_stop
        watching.append(Divergence(losses, *limits))
    known = folder.logged_at(first_step) if start and keep and hardware.is_first_process() else set()

    def written(tags: str) -> int | None:
        return first_step if any(tag.startswith(tags) for tag in known) else None

    if every := config.trainer.feature_norms_every:
        watching.append(FeatureNorms(every, config.model.depth, written("features/")))
    if every := config.trainer.spectral_norms_every:
        watching.append(SpectralNorms(every, module.model, config.recipe.branch_depth, written("spectral/")))
    if config.trainer.update_check_every:
        watching.append(UpdateCheck(config.trainer.update_check_every))
    watching += [*callbacks, *([ProgressBar(throughput, validation)] if progress else []), *([saving] if keep else [])]
    if start:
        watching.append(RestoreStates(start))
    purge_step = first_step + 1 if start else 0 if again else None
    trainer = make_trainer(config, folder, watching, accumulation, purge_step=purge_step, keep=keep)
    trainer.fit(module, datamodule, ckpt_path=str(start.state) if start else None, weights_only=True)

    steps = trainer.global_step
    finished = steps >= config.trainer.max_steps
    newest = saving.last or start
    result = Result(
        finished=finished,
        steps=steps,
        first_step=first_step,
        validation_loss=validation.history[-1][1] if finished and validation.history else None,
        unigram_loss=manifest.unigram_loss,
        tokens=steps * tokens_per_step,
        parameters=parameters,
        seconds=time.perf_counter() - begin,
        tokens_per_second=throughput.tokens_per_second,
        checkpoint=str(newest.path) if newest else None,
        tensorboard=str(folder.tensorboard) if keep else None,
        versions=versions.versions(),
    )
    if keep and hardware.is_first_process():
        folder.save_result(asdict(result))
    return result
