"""A probe from beginning to end: measure every size and seed, fit, judge or propose; one plain result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.fit import fit
from mup_lightning.studies.probe.candidate import Candidate
from mup_lightning.studies.probe.measure import geometric_mean, measure
from mup_lightning.studies.probe.proposal import propose
from mup_lightning.studies.probe.settings import WINDOWS, ProbeSettings
from mup_lightning.studies.probe.verdict import PROPOSED, Fits, as_plain, cells, overall, sentence
from mup_lightning.versions import versions

FILE = "probe.json"


def probe(
    candidate: Candidate, settings: ProbeSettings, on_step: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Probe one optimizer.

    Args:
        candidate: from `ours` or `foreign`.
        settings: sizes, steps, tolerance.
        on_step: called after every step of every network.

    Returns:
        Plain values: "optimizer", "verdict" (consistent, inconsistent, unclear or proposed), "sentence", "fits"
        (window -> role -> axis -> exponent, low, high, last), "cells" (declared and verdict of each), "proposal" (for
        an unknown optimizer, else None), "facts", "settings", "versions", and "networks": everything measured.

    Raises:
        UserError: a step was not finite, or no step changed anything.
    """
    networks = [
        measure(candidate, settings, width, depth, seed, on_step)
        for width, depth in settings.shapes
        for seed in range(settings.seeds)
    ]
    for network in networks:
        add_windows(network, settings)
    fits = fit_all(networks, candidate.roles, settings)
    if not any(fits.values()):
        raise UserError(
            f"{candidate.name} changed nothing in {settings.steps} steps, so there is nothing to measure. Does it warm "
            f"up? Give it --steps, or other --arguments"
        )
    judged = cells(fits, candidate.families, settings.branch_depth, settings.tolerance) if candidate.families else []
    proposal = None if candidate.families else propose(candidate.name, fits, settings.branch_depth)
    return {
        "optimizer": candidate.name,
        "verdict": overall(judged) if judged else PROPOSED,
        "sentence": sentence(candidate.name, judged, settings.tolerance) if judged else summary(proposal, candidate),
        "fits": {
            window: {str(role): {axis: asdict(found) for axis, found in axes.items()} for role, axes in by_role.items()}
            for window, by_role in fits.items()
        },
        "cells": as_plain(judged),
        "proposal": proposal,
        "facts": candidate.facts,
        "settings": asdict(settings),
        "versions": versions(),
        "networks": networks,
    }


def add_windows(network: dict[str, Any], settings: ProbeSettings) -> None:
    """Add what the steps of each window come to: role -> "windows" -> ‖A‖_R, or None."""
    for found in network["roles"].values():
        steps = found["direction"]
        later = steps[settings.later_from - 1 :]
        found["windows"] = {
            "first": steps[0],
            "later": geometric_mean(later) if None not in later else None,
        }


def fit_all(networks: list[dict[str, Any]], roles: tuple[Role, ...], settings: ProbeSettings) -> Fits:
    """Both exponents of every role in every window in which all networks moved."""
    values = {(n["width"], n["depth"], n["seed"]): n["roles"] for n in networks}
    width, depth = settings.base
    lines = {
        "width": (settings.widths, [(size, depth) for size in settings.widths]),
        "depth": (settings.depths, [(width, size) for size in settings.depths]),
    }
    result: Fits = {window: {} for window in WINDOWS}
    for window in WINDOWS:
        for role in roles:
            of_role = {key: found[str(role)]["windows"][window] for key, found in values.items()}
            if None in of_role.values():
                continue
            result[window][role] = {
                axis: fit(sizes, [[of_role[*shape, seed] for shape in shapes] for seed in range(settings.seeds)])
                for axis, (sizes, shapes) in lines.items()
            }
    return result


def summary(proposal: dict[str, Any] | None, candidate: Candidate) -> str:
    """What was found of an unknown optimizer, in plain words."""
    assert proposal is not None
    if proposal["like"]:
        return f"{candidate.name} behaves as the {proposal['like']} family; its recipe is proposed."
    nearest = proposal["nearest"]
    return (
        f"{candidate.name} behaves as no declared family; the nearest is the {nearest['kind']} family, off by "
        f"{nearest['off']:.2f} in its worst exponent. Its own recipe is proposed."
    )
