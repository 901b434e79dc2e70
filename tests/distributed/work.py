"""Long work that `tests.distributed.kills` kills: what it does, and what of its results must be equal."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import tiny_config, write_corpus

STEPS = 8


@dataclass(frozen=True)
class Work:
    """Work that is killed.

    Attributes:
        do: the command, given the folder that it works in; returns its exit status.
        left: what it leaves in that folder, to be compared.
        before: makes the folder ready for the first start.
        processes: that work together.
        over: whether it had ended just before it was killed, which is then no kill.
    """

    do: Callable[[Path], int]
    left: Callable[[Path], Any]
    before: Callable[[Path], object] = lambda folder: None
    processes: int = 1
    over: Callable[[Path], bool] = lambda folder: False


def files(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    """The files below a folder, by their names from there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


def command(*words: object) -> int:
    """`mup-lightning` with these words."""
    from mup_lightning.cli.main import main

    return main([str(word) for word in words])


def all_work(root: Path) -> dict[str, Work]:
    """Everything that is killed, by name; what it needs is made in `root`."""
    corpus = write_corpus(root / "corpus")
    card = corpus.parent / "card.yaml"
    shape = {"model.width": 16, "model.depth": 1, "model.dropout": 0.1, "data.micro_batch": 2, "data.val_tokens": 256}
    often = {"checkpoint_every": 1, "validate_every": 0, "max_steps": STEPS, "log_every": 4, "feature_norms_every": 4}
    shape |= {"schedule.kind": "wsd", "schedule.decay": 0.5}  # of which `anneal` can make branches
    plain = asdict(tiny_config(corpus, "runs", **shape, **{f"trainer.{key}": value for key, value in often.items()}))
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(plain))

    def prepare(folder: Path) -> int:
        from mup_lightning.data.card import load_card
        from mup_lightning.data.prepare import prepare

        prepare(load_card(card), folder / "corpus", "bytes", shard_tokens=2000, progress=False)
        return 0

    def training(strategy: str, *more: str) -> Callable[[Path], int]:
        devices = 1 if strategy == "single" else 2
        words = ("-c", recipe, f"strategy={strategy}", f"devices={devices}", "run=it", *more)
        return lambda folder: command("train", *words, f"run.root={folder}")

    def trained(folder: Path) -> Any:
        """The last checkpoint, which checkpoints there are, and the loss."""
        saved = folder / "it" / "checkpoints"
        tensors = files(saved / f"step_{STEPS:08d}", "*.safetensors")
        names = sorted(path.name for path in saved.glob("step_*"))
        result = yaml.safe_load((folder / "it" / "result.json").read_text())
        return tensors, names, result["validation_loss"], result["steps"]

    def finished(folder: Path) -> None:
        shutil.copytree(root / "finished" / "it", folder / "it")

    def aside(folder: Path) -> int:
        return training("single", "trainer.keep_checkpoints=99", f"resume={folder}/it/checkpoints/step_00000003")(
            folder
        )

    def sweeping(verb: str, workers: int) -> Callable[[Path], int]:
        fixed = {"trainer.max_steps": 4, "trainer.checkpoint_every": 2}
        vary = {"recipe.lr": {"log2": [-9, -7, -5]}, "model.width": [16, 32]}
        sweep = {"configs": [str(recipe)], "set": fixed, "vary": vary, "keep_runs": "logs"}
        if verb == "tune":
            sweep |= {"configs": [], "set": fixed | {"model.depth": 1}}
        file = root / f"{verb}.yaml"
        file.write_text(yaml.safe_dump({"sweep": sweep}))
        target = ("-c", recipe, "--sweep", file) if verb == "tune" else (file,)
        return lambda folder: command(verb, *target, "--out", folder / "out", "--workers", workers)

    def anneal(folder: Path) -> int:
        words = ("--steps", "4,6,8", "--decay", 0.5, "--out", folder / "out", "--workers", 0)
        return command("anneal", root / "finished" / "it", *words)

    def swept(folder: Path) -> Any:
        """The table without the columns of time, what tune writes, and the weights of anneal's branches."""
        import pandas as pd

        table = pd.read_csv(folder / "out" / "results.csv", dtype=str).drop(columns=["seconds", "tokens_per_second"])
        file = folder / "out" / "tuned.yaml"
        found = file.read_text().partition("\n")[2] if file.exists() else ""  # line 1 is the hash of all, path included
        branches = files(folder / "out", "runs/*/checkpoints/*/*.safetensors")
        return table.to_csv(), found.replace(str(folder), ""), sorted(files(folder / "out", "trials/*.json")), branches

    def export(form: str) -> Work:
        words = ("export", root / "finished" / "it", "--format", form, "--out")
        return Work(
            do=lambda folder: command(*words, folder / "exported"),
            left=lambda folder: files(folder / "exported"),
            over=lambda folder: (folder / "exported").exists(),
        )

    trainings = {
        strategy: Work(training(strategy, "resume=auto"), trained, processes=1 if strategy == "single" else 2)
        for strategy in ("single", "ddp", "zero1")
    }
    everything_kept = training("single", "trainer.keep_checkpoints=99")
    return {
        "a run to continue": Work(everything_kept, trained),
        "data prepare": Work(prepare, lambda folder: files(folder / "corpus")),
        **{f"train, {strategy}": work for strategy, work in trainings.items()},
        "train, setting aside": Work(aside, trained, finished),
        "sweep": Work(sweeping("sweep", 0), swept),
        "sweep, a worker": Work(sweeping("sweep", 1), swept),
        "tune": Work(sweeping("tune", 0), swept),
        "anneal": Work(anneal, swept),
        "export, plain": export("plain"),
        "export, hf": export("hf"),
    }
