"""`mup-lightning VERB`: finds the verb, runs it, and turns the user's mistakes into one line."""

from __future__ import annotations

import errno
import importlib
import os
import sys

from mup_lightning import signals
from mup_lightning.errors import UserError

VERBS: dict[str, str] = {
    "train": "train a model, or continue a run",
    "evaluate": "validation loss of a checkpoint on a prepared corpus",
    "sweep": "run a grid of configurations into one table of results",
    "tune": "find a large model's base learning rate on small ones",
    "submit": "run a training, or a sweep as an array, on a SLURM cluster",
    "export": "write a checkpoint's weights as a plain Hugging Face GPT-2, or as they are",
    "recipe": "how every hyper-parameter scales with width and depth",
    "plan": "what a run would use and cost: values, FLOPs, GPU memory",
    "data": "prepare, check and describe a corpus",
    "probe": "measure how an optimizer's steps scale, against what is declared",
    "coord-check": "whether features keep their size while the model grows, with a verdict",
    "assumptions": "measure over depth what the spectral condition takes for granted",
    "report": "what a sweep's results say",
    "figure": "draw feature norms from runs' TensorBoard logs",
}
"""Verb -> what it does. Each is a module here, _ for -, with `main(argv) -> exit code`, imported when it is called."""

_THE_MACHINES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)
"""Errors of the file system that no code of ours can have made: no right, no room, a file where a folder should be."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0, or what the verb says; 1 for a user's mistake; 2 for an unknown verb, or option of a verb that has no
        --section.key; 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if signals.in_job():
        signals.catch()
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}; expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"mup_lightning.cli.{verb.replace('-', '_')}").main(rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _THE_MACHINES or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _help() -> str:
    lines = [f"  {verb:<11} {what}" for verb, what in VERBS.items()]
    return "\n".join(
        [
            "usage: mup-lightning VERB [options]",
            "",
            "Pre-train GPT-2 with hyper-parameters derived from one spectral condition.",
            "",
            *lines,
            "",
            "mup-lightning VERB --help explains a verb, with an example.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
