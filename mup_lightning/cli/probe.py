"""`mup-lightning probe`."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from mup_lightning.studies.probe.settings import ProbeSettings


def main(argv: list[str]) -> int:
    """Probe one optimizer, or all of ours; see `run.run`."""
    parser = ArgumentParser(prog="mup-lightning probe", description="Measure how an optimizer's steps scale.")
    parser.add_class_arguments(ProbeSettings)
    words = []
    for before, word in zip(["", *argv], argv, strict=False):
        lists = before in ("--widths", "--depths") and not word.startswith("[")
        words.append(f"{word}=true" if word in ("--all", "--quick", "--json") else f"[{word}]" if lists else word)
    settings = ProbeSettings(**parser.instantiate_classes(parser.parse_args(words)).as_dict())
    from mup_lightning.studies.probe.run import run

    return run(settings)
