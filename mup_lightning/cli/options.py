"""The options of the verbs that have no row of settings in the table yet."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from typing import Any

from mup_lightning.config.load import Layer, build_config, word
from mup_lightning.config.schema import Config


def config_parser(prog: str, description: str, example: str) -> ArgumentParser:
    """A parser for a verb's own options; the rest of the command line is a configuration."""
    return ArgumentParser(
        prog=prog,
        description=f"{description}\n\nexample:\n  {example}",
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )


def parse(parser: ArgumentParser, argv: list[str]) -> Any:
    """The own options, and the layers of the configuration."""
    known, rest = parser.parse_known_args(argv)
    layers: list[Layer] = []
    while rest:
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        layers += word("config" if name == "c" else name, value if equals else rest.pop(0))
    return Namespace(**vars(known), layers=layers, config=[layer for layer in layers if not isinstance(layer, dict)])


def build(parser: ArgumentParser, arguments: Namespace) -> Config:
    """The Config of parsed arguments."""
    return build_config(arguments.layers)
