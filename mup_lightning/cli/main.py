"""`mup-lightning VERB`: parses a command line by the table of verbs, runs it, and ends a user's mistake in one line."""

import errno
import inspect
import os
import re
import sys
import textwrap
from collections import defaultdict
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any

from mup_lightning import signals
from mup_lightning.cli.commands import VERBS, Verb
from mup_lightning.config.load import GROUPS, RECIPES, WORDS, Layer, hint_of, merge, preset, unknown_option, word
from mup_lightning.config.schema import Config
from mup_lightning.errors import UsageError, UserError
from mup_lightning.typed import Option, Raw, build, describe, hints, options

_FILE_SYSTEM = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)
"""Errors that the machine, not this code, has made: no permission, no space, a file where a folder should be."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0, or what the verb returns (3 and 4: a verdict of FAIL and UNCLEAR); 1 for a user's mistake; 2 for an unknown
        verb, or a wrong option of a verb that takes no configuration; 130 after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else argv
    two = " ".join(words[:2])
    name = two if two in VERBS else "".join(words[:1])
    rest = words[len(name.split()) :]
    if name not in VERBS:
        return _help_or_refuse(name, rest)
    if signals.in_job():
        signals.catch()
    try:
        return _run(VERBS[name], rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _FILE_SYSTEM or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(verb: Verb, argv: list[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(help_of(verb), flush=True)
        return 0
    try:
        arguments = parse(verb, argv)
    except UsageError as error:
        joint = " " if str(error).endswith("?") else "; "
        print(f"error: {error}{joint}mup-lightning {verb.name} --help shows what it takes", file=sys.stderr)
        return 1 if verb.config else 2
    return int(verb.load(verb.run)(*arguments))


def parse(verb: Verb, argv: list[str]) -> list[Any]:
    """The arguments of a verb's function: its settings, its configuration, or both.

    Takes `--option VALUE`, `--option=VALUE`, `option=VALUE` and `-c FILE` in any order; they apply left to right.

    Raises:
        UserError: naming the option, its value and what was expected.
    """
    settings = verb.load(verb.settings) if verb.settings else None
    classes = [cls for cls in (settings, Config if verb.config else None) if cls]
    layers: list[Layer] = []
    repeated: defaultdict[str, list[Raw]] = defaultdict(list)
    rest = list(argv)
    while rest:
        item = rest.pop(0)
        flag = item.startswith("-")
        name, equals, value = item.lstrip("-").partition("=")
        if not flag and not re.fullmatch(r"[A-Za-z_][\w.-]*=", name + equals):
            name, value = verb.positional or "", item
            if not name:
                raise UsageError(f"unexpected argument {item!r}")
        name = "config" if item[:2] == "-c" and name == "c" else name.replace("-", "_")
        hint = hint_of(name, classes)
        if flag and not equals:
            if hint is bool and rest[:1] not in (["true"], ["false"]):
                value = "true"
            elif not rest:
                raise UsageError(f"{item} needs a value")
            else:
                value = rest.pop(0)
        own = settings is not None and name in hints(settings) and not is_dataclass(hint)
        if own and hint in (list[str], list[Path]):  # repeated, while lists of numbers are 1,2,4
            repeated[name].append(Raw(value))
            layers.append({name: list(repeated[name])})
        elif own:
            layers.append({name: Raw(value)})
        elif verb.config:
            layers += word(name, value)
        elif verb.positional and name in GROUPS:
            layers.append({verb.positional: preset(name, value)})
        else:
            raise unknown_option(name, classes)
    return _built(verb, settings, merge(layers, classes))


def _built(verb: Verb, settings: type | None, values: dict[str, Any]) -> list[Any]:
    arguments: list[Any] = []
    if settings is not None:
        own = {name: values.pop(name) for name in hints(settings) if name in values}
        for option in options(settings):
            if option.default is MISSING and option.key not in own:
                shown = option.key.upper() if option.key == verb.positional else f"--{option.key.replace('_', '-')}"
                raise UsageError(f"{shown} is missing: {option.text}")
        arguments.append(build(settings, own, "--"))
    return [*arguments, Config.from_plain(values)] if verb.config else arguments


def help_of(verb: Verb) -> str:
    """Everything a verb takes, with an example."""
    settings = verb.load(verb.settings) if verb.settings else None
    own = list(options(settings)) if settings else []
    positional = [option for option in own if option.key == verb.positional]
    usage = f"usage: mup-lightning {verb.name}" + "".join(f" {option.key.upper()}" for option in positional)
    usage += " [--option VALUE ...]" * (len(own) > len(positional))
    usage += " [-c FILE.yaml ...] [size=NAME ...] [--section.key VALUE ...]" * verb.config
    about = re.split(r"\n\s*Attributes:", inspect.getdoc(settings) or "")[0] if settings else ""
    lines = [usage, "", f"{verb.summary[0].upper()}{verb.summary[1:]}.", *([about] if about else [])]
    lines += ["", "example:", *(f"  {line}" for line in verb.example.splitlines())]
    if own:
        lines += ["", "options:", *(_explained(option, option not in positional) for option in own)]
    if verb.config:
        lines += ["", "presets (files in recipes/, which -c FILE takes too):"]
        for folder in sorted(RECIPES.glob("*/")):
            lines.append(
                _wrapped(f"{folder.name}=NAME", " | ".join(sorted(file.stem for file in folder.glob("*.yaml"))))
            )
        lines += ["", "everyday words:", *(_wrapped(f"{short}=VALUE", f"--{key}") for short, key in WORDS.items())]
        lines += ["", "all keys of the configuration:", *(_explained(option, True) for option in options(Config))]
    return "\n".join(lines)


def _explained(option: Option, dashes: bool) -> str:
    """An option, what it means, what it can be, and its default."""
    name = f"--{option.key if '.' in option.key else option.key.replace('_', '-')}" if dashes else option.key.upper()
    default = "required" if option.default is MISSING else f"default: {_plain(option.default)}"
    return _wrapped(name, f"{option.text} ({describe(option.hint)}; {default})")


def _wrapped(name: str, text: str) -> str:
    """A name, and the text that explains it in a column of its own."""
    return textwrap.fill(text, 118, initial_indent=f"  {name}  ".ljust(32), subsequent_indent=" " * 32)


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return ",".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _help_or_refuse(name: str, rest: list[str]) -> int:
    """The list of verbs, or of those that begin with a word such as `data`."""
    family = [verb for verb in VERBS if verb.startswith(f"{name} ")] if name else []
    if name and not family and name not in ("-h", "--help"):
        print(f"error: unknown verb {name!r}; expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    if rest and rest[0] not in ("-h", "--help"):
        print(f"error: unknown verb {f'{name} {rest[0]}'!r}; expected {', '.join(family)}", file=sys.stderr)
        return 2
    lines = ["usage: mup-lightning VERB [options]", ""]
    lines += ["Pre-train GPT-2 with hyper-parameters derived from one spectral condition.", ""]
    lines += [f"  {verb:<16} {VERBS[verb].summary}" for verb in family or VERBS]
    lines += ["", "example:", f"  {VERBS[(family or list(VERBS))[0]].example}"]
    print("\n".join([*lines, "", "mup-lightning VERB --help explains a verb."]))
    return 0 if name in ("-h", "--help") or rest else 2


if __name__ == "__main__":
    sys.exit(main())
