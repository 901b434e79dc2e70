"""The JSON file that an experiment leaves for reports."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write(result: dict[str, Any], file: Path) -> bool:
    """Write a result, whole or not at all, and make its folder. Returns whether it took the place of an earlier one.

    Raises:
        ValueError: a number is not finite.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    replaced = file.exists()
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(result, allow_nan=False) + "\n")
    os.replace(part, file)
    return replaced
