"""Train a model: from a configuration to a run folder with a result."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import lightning.pytorch as pl

from mup_lightning import versions
from mup_lightning.callbacks.dashboard import Dashboard, pages, panels
from mup_lightning.callbacks.divergence import Divergence
from mup_lightning.callbacks.feature_norms import FeatureNorms
from mup_lightning.callbacks.gradient_norms import GradientNorms
from mup_lightning.callbacks.losses import Losses, Validation
from mup_lightning.callbacks.progress import ProgressBar
from mup_lightning.callbacks.spectral_monitor import SpectralNorms
from mup_lightning.callbacks.stopping import Stopping
from mup_lightning.callbacks.throughput import Throughput
from mup_lightning.callbacks.update_check import UpdateCheck
from mup_lightning.config.schema import Config
from mup_lightning.data.datamodule import TokenDataModule
from mup_lightning.data.sampler import accumulation_steps
from mup_lightning.data.shards import Manifest, check_vocabulary
from mup_lightning.model.gpt2 import GPT2
from mup_lightning.optim.registry import resolve_rules
from mup_lightning.optim.schedule import warmup_cosine
from mup_lightning.training.checkpoint import Checkpoint, RunFolder
from mup_lightning.training.hardware import is_first_process, resolve
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.saving import Restore, SaveCheckpoints, identity_of, resume_from
from mup_lightning.training.trainer import make_trainer


@dataclass(frozen=True)
class Result:
    """The outcome of a run; also the contents of result.json.

    Attributes:
        finished: false where a signal stopped it before its last step.
        steps: optimizer steps done, over all resumes.
        first_step: how many of them were done before this process's part of the run.
        validation_loss: nats per token after the last step; None where the run was stopped before it.
        unigram_loss: nats per token of a unigram model of the same corpus: what frequencies alone achieve.
        tokens: trained on, over all resumes.
        parameters: of the model.
        seconds: wall time of this process's part of the run, start-up and validation included.
        tokens_per_second: in training steps alone.
        checkpoint: the newest one.
        tensorboard: folder of the event files; None where nothing was kept.
        versions: of the packages that computed it, and the git revision.
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
        config: is resolved in place (`auto` becomes what this machine has; `rules` has all options in force).
        callbacks: more of them; they run before the run's own progress bar and checkpoints.
        progress: show the progress bar.
        keep: make a run folder, with logs and checkpoints; False writes nothing at all.

    Returns:
        The result, which is saved in the run folder too.

    Raises:
        UserError: a value, the data, the run folder or a checkpoint does not fit.
        Diverged: the loss or the gradients became NaN or infinite.
    """
    begin = time.perf_counter()
    resolve(config.trainer)
    resolve_rules(config)
    world_size = config.trainer.devices * config.trainer.nodes
    accumulation = accumulation_steps(config.data.batch_size, config.data.micro_batch, world_size)
    warmup_cosine(config.schedule, config.recipe.lr, config.trainer.max_steps)  # refuses an impossible schedule
    manifest = Manifest.load(config.data.path)
    check_vocabulary(manifest, config.data.tokenizer)

    folder, identity = RunFolder(config), identity_of(config, manifest)
    start = resume_from(config, folder, identity, keep=keep)
    first_step = start.step if start else 0
    if first_step >= config.trainer.max_steps and (before := folder.finished_result()):
        return Result(**before)

    data = TokenDataModule(config.data, config.model.context, config.seed, config.trainer.max_steps)
    data.setup()
    module = GPT2Module(config)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if keep and is_first_process():
        folder.open(config, start)

    tokens_per_step = config.data.batch_size * config.model.context
    throughput = Throughput(tokens_per_step, config.trainer, module.model.flops_per_token if keep else 0)
    validation = Validation(config.trainer.validate_every, throughput)
    saving = SaveCheckpoints(folder, config, identity, throughput)
    watching = default_callbacks(config, module.model, folder, start, throughput, validation, keep=keep)
    watching += [*callbacks, *([ProgressBar(throughput, validation)] if progress else [])]
    watching += [*([saving] if keep else []), *([Restore(start)] if start else [])]
    purge_step = first_step + 1 if start else 0 if config.run.resume == "auto" else None
    trainer = make_trainer(config, folder, watching, accumulation, purge_step=purge_step, keep=keep)
    trainer.fit(module, data, ckpt_path=str(start.state) if start else None, weights_only=True)

    steps, newest = trainer.global_step, saving.last or start
    finished = steps >= config.trainer.max_steps
    result = Result(
        finished=finished,
        steps=steps,
        first_step=first_step,
        validation_loss=validation.last if finished else None,
        unigram_loss=manifest.unigram_loss,
        tokens=steps * tokens_per_step,
        parameters=parameters,
        seconds=time.perf_counter() - begin,
        tokens_per_second=throughput.tokens_per_second,
        checkpoint=str(newest.path) if newest else None,
        tensorboard=str(folder.tensorboard) if keep else None,
        versions=versions.versions(),
    )
    if keep and is_first_process():
        folder.save_result(asdict(result))
    return result


def default_callbacks(
    config: Config,
    model: GPT2,
    folder: RunFolder,
    start: Checkpoint | None,
    throughput: Throughput,
    validation: Validation,
    *,
    keep: bool,
) -> list[pl.Callback]:
    """What every run measures and watches for, in the order in which it runs.

    Args:
        config: resolved.
        model: before a strategy wraps it.
        folder: of the run.
        start: the checkpoint that it continues from.
        throughput: runs first.
        validation: runs before what reads it.
        keep: whether logs are written.
    """
    trainer, every = config.trainer, config.trainer.log_every
    losses = Losses(every, trainer.checkpoint_every if keep else 0, throughput.tokens_per_step)
    found: list[pl.Callback] = [Stopping(), throughput, losses, validation]
    if keep:
        found.append(GradientNorms(every))
        if start is None or not folder.has_logs():
            found.append(Dashboard(panels(trainer, config.recipe.branch_depth), pages(config, model)))
    if trainer.spike_sigmas:
        found.append(Divergence(losses, trainer))
    logged = folder.logged_at(start.step) if start and keep and is_first_process() else set()

    def written(tags: str) -> int | None:
        """The step to resume from, if its points are in the logs already."""
        return start.step if start and any(tag.startswith(tags) for tag in logged) else None

    if trainer.feature_norms_every:
        found.append(FeatureNorms(trainer.feature_norms_every, written("features/")))
    if trainer.spectral_norms_every:
        k = config.recipe.branch_depth
        found.append(SpectralNorms(trainer.spectral_norms_every, model, k, written("spectral/")))
    if trainer.update_check_every:
        found.append(UpdateCheck(trainer.update_check_every))
    return found
