"""The checks from beginning to end: all networks in worker processes, fits, verdicts; one plain result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mup_lightning.studies.assumptions.settings import BASE, BASE_LR, AssumptionSettings
from mup_lightning.studies.assumptions.verdict import ASSUMPTIONS, as_plain, cells, overall, sentence, worst
from mup_lightning.studies.assumptions.workers import Task, each
from mup_lightning.versions import versions

FILE = "assumptions.json"

_WORK = {"mlp": 1.0, "gpt2": 6.0}
"""Time of a block of either network, relative to the MLP's."""


def tasks_of(settings: AssumptionSettings) -> list[Task]:
    """Every network that is trained, the longest first, so that no worker is left alone with a long one."""
    tasks = [
        Task(network, optimizer, depth, seed)
        for network in settings.networks
        for optimizer in settings.optimizers
        for depth in settings.depths
        for seed in range(settings.seeds)
    ]
    return sorted(tasks, key=work_of, reverse=True)


def work_of(task: Task) -> float:
    """How long a network takes, in some unit."""
    return _WORK[task.network] * task.depth


def check(
    settings: AssumptionSettings, workers: int, on_done: Callable[[Task], object] = lambda task: None
) -> dict[str, Any]:
    """Check all assumptions.

    Args:
        settings: networks, depths, optimizers, thresholds.
        workers: processes; 0: in this one.
        on_done: told of every network that is done.

    Returns:
        Plain values: "verdict" (the worst of all), "verdicts" (a list of network, optimizer, assumption, verdict,
        sentence and "cells", the lines over depth that it rests on), "settings", "base" and "base_lr" of each network,
        "versions", and "runs": everything measured.

    Raises:
        UserError: the corpus cannot be read, or a training diverged.
    """
    found: dict[Task, dict[str, Any]] = {}
    tasks = tasks_of(settings)
    for task, run in each(tasks, settings, workers):
        found[task] = run
        on_done(task)
    return judged(settings, [found[task] for task in sorted(tasks)])


def judged(settings: AssumptionSettings, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The result, as `check` returns it, of networks that have been measured."""
    verdicts: list[dict[str, Any]] = []
    for network in settings.networks:
        for optimizer in settings.optimizers:
            mine = [run for run in runs if (run["network"], run["optimizer"]) == (network, optimizer)]
            for assumption in ASSUMPTIONS:
                lines = cells(mine, assumption, settings)
                verdicts.append(
                    {
                        "network": network,
                        "optimizer": optimizer,
                        "assumption": assumption,
                        "verdict": overall(lines),
                        "sentence": sentence(assumption, lines, settings),
                        "cells": as_plain(lines),
                    }
                )
    return {
        "verdict": worst(verdict["verdict"] for verdict in verdicts),
        "verdicts": verdicts,
        "settings": asdict(settings),
        "measured_at": settings.measured_at,
        "base": {network: BASE[network] for network in settings.networks},
        "base_lr": {
            network: {name: BASE_LR[network][name] for name in settings.optimizers} for network in settings.networks
        },
        "versions": versions(),
        "runs": runs,
    }
