"""`mup-lightning anneal`: runs of several lengths as branches of one trunk."""

from collections.abc import Sequence
from dataclasses import replace

from mup_lightning import tables
from mup_lightning.config.schema import Config, RunConfig
from mup_lightning.errors import UserError, located
from mup_lightning.files import check_folder
from mup_lightning.optim.schedule import decay_steps, first_difference, lr_factor, warmup_steps
from mup_lightning.studies.anneal import AnnealSettings
from mup_lightning.studies.sweep.grid import Checker, Trial, config_hash
from mup_lightning.studies.sweep.results import read_trials
from mup_lightning.studies.sweep.run import placed, run_trials
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.checkpoint import Checkpoint


def run(settings: AnnealSettings) -> int:
    """Run the branches, or what is left of them; the exit code is that of a sweep."""
    trunk = settings.run
    folder = settings.out or trunk.parent / f"{trunk.resolve().name}-anneal"
    check_folder(folder)
    if not (saved := [checkpoints.read(path) for path in checkpoints.complete(trunk / "checkpoints")]):
        state = "has no complete checkpoint" if trunk.is_dir() else "does not exist"
        raise UserError(f"{trunk} {state}; expected the folder of the trunk, such as runs/NAME")
    if (before := Config.from_plain(saved[-1].config).trainer).strategy != "single":
        how = f"{before.strategy} on {before.devices * before.nodes} processes"
        print(f"note: the trunk was trained by {how}, and a branch takes one: it equals a whole run to rounding")
    checker = Checker()
    trials = []
    for steps in sorted(set(settings.steps), reverse=True):
        with located(f"--steps {steps}"):
            trials.append(branch(saved, steps, settings, checker))
    code = run_trials(trials, folder, settings.workers, keep="on").exit_code
    records = read_trials(folder)
    lines = [["steps", "from step", "tokens", "validation loss", "run folder"]]
    for trial in reversed(trials):
        if trial.hash in records and trial.start:
            result, place = records[trial.hash]["result"], placed(trial, folder / "runs").run
            numbers = (trial.config.trainer.max_steps, trial.start.step, result["tokens"])
            loss = result["diverged"] if result["loss"] is None else f"{result['loss']:.4f}"
            lines.append([*(f"{number:,}" for number in numbers), loss, f"{place.root}/{place.name}"])
    if lines[1:]:
        print(f"\n{tables.text(lines)}", flush=True)
    return code


def branch(saved: Sequence[Checkpoint], steps: int, settings: AnnealSettings, checker: Checker) -> Trial:
    """The branch of so many steps from one of the trunk's checkpoints. UserError: no whole run would have had one."""
    peak = steps - decay_steps(settings.decay, steps)
    begins = f"its decay begins after step {peak}"
    kind, warmup = (last := Config.from_plain(saved[-1].config)).schedule.kind, warmup_steps(last)
    if warmup >= peak:
        raise UserError(f"{begins}, and the trunk's warm-up takes {warmup} steps; anneal more steps")
    expected = "expected schedule.kind constant, or wsd with a later decay"
    if kind in ("cosine", "linear") and saved[0].step > warmup:
        raise UserError(f"{begins}, but the trunk's ({kind}) began after step {warmup}; {expected}")
    if peak > saved[-1].step:
        on = "train the trunk on (--run.resume last, --trainer.max_steps), or anneal fewer steps"
        raise UserError(f"{begins}, and {settings.run} has got to step {saved[-1].step}; {on}")
    if not (before := [one for one in saved if one.step <= peak]):
        there = ", ".join(str(one.step) for one in saved)
        decide = "trainer.checkpoint_every and trainer.keep_checkpoints of the trunk decide that"
        raise UserError(f"{begins}, and {settings.run} has checkpoints of later steps alone ({there}); {decide}")
    start = before[-1]
    trunk = Config.from_plain(start.config)
    # Where rates follow the horizon, the branch has the trunk's, as all steps up to here.
    tokens = None if trunk.recipe.time_rule == "none" else trunk.scaled_tokens
    floor = trunk.schedule.floor if settings.floor is None else settings.floor
    schedule = replace(trunk.schedule, warmup_steps=warmup, warmup_tokens=None)
    config = replace(
        trunk,
        recipe=replace(trunk.recipe, tokens=tokens),
        schedule=replace(schedule, kind="wsd", decay=settings.decay, floor=floor),
        trainer=replace(trunk.trainer, max_steps=steps, checkpoint_every=0, strategy="single", devices=1, nodes=1),
        run=RunConfig(),
    )
    if found := first_difference(lr_factor(trunk), lr_factor(config), start.step):
        gone = f"the trunk's ({trunk.schedule.kind}) began in step {found[0] + 1}, at {found[1]:.4g} of the peak"
        raise UserError(f"{begins}, but {gone}; {expected}")
    checked = checker.check(config)
    left = replace(checked, work=checked.work * (1 - start.step / steps))
    name, varied = config_hash(config, checked.corpus), {"trainer.max_steps": steps}
    return Trial(config, name, left, ("tokens",), "recipe.lr", varied, f"steps={steps}", start)
