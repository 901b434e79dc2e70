"""Where a run continues from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.optim.schedule import warmup_cosine
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training import hardware
from mup_lightning.training.run_folder import RunFolder


def resume_from(config: Config, folder: RunFolder, identity: dict[str, Any]) -> checkpoints.Checkpoint | None:
    """Find, check and compare the checkpoint to continue from; None for a new run.

    Raises:
        UserError: it is missing or damaged, it is of another run or was set aside in this one, or all its steps are
            done (which auto lets pass).
    """
    auto = config.run.resume == "auto"
    if config.run.resume is None or (auto and not checkpoints.complete(folder.checkpoints)):
        return None
    last = auto or config.run.resume == "last"
    start = checkpoints.newest(folder.checkpoints) if last else checkpoints.read(Path(config.run.resume))
    if is_own(start, folder) and start.path.name != checkpoints.folder_name(start.step):
        raise UserError(
            f"{start.path} was set aside when its run went back to an older checkpoint: that run has other steps now; "
            f"continue it as another one (--run.name NAME)"
        )
    differing = checkpoints.differences(start.identity, identity)
    if differing:
        lines = "".join(f"\n  {line}" for line in differing)
        raise UserError(
            f"{start.path} cannot be continued exactly, because this run differs in:{lines}\n"
            f"Resume with the values of the checkpoint (they stand in {folder.config_file}), or start a new run "
            f"(--run.name NAME)"
        )
    if start.step >= config.trainer.max_steps and not auto:
        raise UserError(
            f"{start.path} has all {start.step} steps of the run already; raise trainer.max_steps (STEPS=N) to train on"
        )
    if hardware.is_first_process():
        checkpoints.verify(start)
    return start


def is_own(start: checkpoints.Checkpoint | None, folder: RunFolder) -> bool:
    """Whether the checkpoint is one of the run's own."""
    return start is not None and start.path.resolve().parent == folder.checkpoints.resolve()


def set_later_aside(start: checkpoints.Checkpoint, folder: RunFolder) -> None:
    """Where a run goes on from an older checkpoint of its own, the later ones are of a run that is no more."""
    if is_own(start, folder) and (aside := checkpoints.set_aside(folder.checkpoints, start.step)):
        print(
            f"note: the run is made anew from step {start.step} on; its later checkpoints are kept aside: "
            f"{', '.join(map(str, aside))}"
        )


@rank_zero_only
def say_new_length(start: checkpoints.Checkpoint, config: Config) -> None:
    """Tell what another length of the run does to the schedule, if it has one."""
    old = start.config["trainer"]["max_steps"]
    if old == config.trainer.max_steps:
        return
    before, now = (
        warmup_cosine(config.schedule, config.recipe.lr, n)(start.step) for n in (old, config.trainer.max_steps)
    )
    print(
        f"note: the run was planned for {old} steps and now has {config.trainer.max_steps}; the schedule's factor on "
        f"the learning rate at step {start.step} goes from {before:.4f} to {now:.4f}"
    )
