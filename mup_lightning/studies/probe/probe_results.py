"""Reading a probe's result file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mup_lightning.studies.result_read import read_result

KEYS = {"optimizer", "verdict", "sentence", "fits", "cells", "settings", "networks"}


def read_probe(file: Path) -> dict[str, Any]:
    """Read a result of `mup-lightning probe`.

    Raises:
        UserError: there is no such file, or it is no probe's result.
    """
    return read_result(file, "probe", KEYS)
