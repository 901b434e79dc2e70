"""Reading a probe's result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError

KEYS = {"optimizer", "verdict", "sentence", "fits", "cells", "settings", "networks"}


def read_probe(file: Path) -> dict[str, Any]:
    """Read a result of `mup-lightning probe`.

    Raises:
        UserError: there is no such file, or it is no probe's result.
    """
    try:
        result = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"there is no {file}; make it with mup-lightning probe") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not (isinstance(result, dict) and result.keys() >= KEYS):
        raise UserError(f"{file} is no result of mup-lightning probe")
    return result
