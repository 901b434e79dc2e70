"""Versions of the packages and git revision of the code, which are stored with every result."""

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("mup-lightning", "torch", "lightning", "numpy", "tiktoken", "datasets")


def versions() -> dict[str, str | None]:
    """Package -> version, "python", and "git": the revision, with "+changes" where the tree differs from it."""
    root = Path(__file__).resolve().parents[1]
    result: dict[str, str | None] = {"python": platform.python_version(), "git": None}
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+changes"]
        with suppress(OSError, subprocess.SubprocessError):
            result["git"] = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
    for name in _PACKAGES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = None
    return result
