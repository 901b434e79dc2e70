"""Reading the result file of the assumption checks, and the words for what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mup_lightning.studies.result_read import read_result

KEYS = {"verdict", "verdicts", "settings", "measured_at", "base_lr", "runs"}

FORMULAS = {
    "weights": "‖W+ΔW‖ / (‖W‖+‖ΔW‖)",
    "features": "‖h+Δh‖ / (‖h‖+‖Δh‖)",
    "activation": "‖φ(Wh)‖ / ‖Wh‖",
    "alignment": "‖ΔW h(x_i)‖ / ‖(1/B) ΔW_(i) h(x_i)‖",
}
"""Assumption -> the ratio; all norms are RMS norms."""

CLAIMS = {
    "weights": "a step does not cancel its weight",
    "features": "a step does not cancel the features it changes",
    "activation": "the nonlinearity keeps the size of features",
    "alignment": "the updates of single samples add up",
}
"""Assumption -> what it says."""

NETWORKS = {"mlp": "residual MLP", "gpt2": "GPT-2"}

MATRICES = {
    "input": "input matrix",
    "first": "first branch matrix",
    "second": "second branch matrix",
    "token": "token embedding",
    "value": "attention: V",
    "out": "attention: output",
    "up": "MLP: up",
    "down": "MLP: down",
    "stream": "residual stream",
}


def read_assumptions(file: Path) -> dict[str, Any]:
    """Read a result of `mup-lightning assumptions`.

    Raises:
        UserError: there is no such file, or it is no result of the checks.
    """
    return read_result(file, "assumptions", KEYS)
