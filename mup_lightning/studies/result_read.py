"""Reading the JSON file that an experiment has left."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError


def read_result(file: Path, verb: str, keys: Set[str]) -> dict[str, Any]:
    """Read a result of `mup-lightning VERB`.

    Args:
        file: to be read.
        verb: that makes such files.
        keys: that every one of them has.

    Raises:
        UserError: there is no such file, or it is no result of the verb.
    """
    try:
        result = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no {file}; make it with mup-lightning {verb}") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not (isinstance(result, dict) and result.keys() >= keys):
        raise UserError(f"{file} is no result of mup-lightning {verb}")
    return result
