"""Versions of the packages and git revision of the code, which are stored with every result."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("mup-lightning", "torch", "lightning", "numpy", "tiktoken", "datasets")


def versions() -> dict[str, str | None]:
    """Package -> version, "python", and "git": the revision, with "+changes" where the tree differs from it."""
    result: dict[str, str | None] = {"python": platform.python_version(), "git": _revision()}
    for name in _PACKAGES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = None
    return result


def _revision() -> str | None:
    root = Path(__file__).resolve().parents[1]
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+changes"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() if (root / ".git").exists() else None
