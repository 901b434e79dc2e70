"""Configurations made in Python: the same bounds as from files, and what must be equal to continue a run."""

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from mup_lightning.config.identity import identity
from mup_lightning.config.model import ModelConfig
from mup_lightning.config.schema import Config, DataConfig, TrainerConfig
from mup_lightning.errors import UserError
from mup_lightning.slurm.options import SlurmConfig
from mup_lightning.spectral.recipe import RecipeConfig
from mup_lightning.typed import PositiveInt, Raw, Typed, build, describe, hints, options


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *((ModelConfig, key, 0) for key in ("width", "depth", "heads", "context", "vocab_size", "loss_chunk")),
        *((DataConfig, key, 0) for key in ("batch_size", "micro_batch", "val_tokens")),
        *((TrainerConfig, key, 0) for key in ("max_steps", "devices", "nodes", "keep_checkpoints", "log_every")),
        *((TrainerConfig, key, -1) for key in ("gradient_clip", "validate_every", "spike_sigmas", "peak_flops")),
        *((RecipeConfig, key, 0) for key in ("lr", "init_std", "base_width", "aux_lr_factor", "output_multiplier")),
        *((RecipeConfig, key, -1e-9) for key in ("weight_decay", "eps")),
        *((SlurmConfig, key, "two words") for key in ("memory", "partition", "job")),
        *((ModelConfig, key, 1_000_001) for key in ("width", "heads", "context", "mlp_ratio", "depth")),
        *((RecipeConfig, key, 1e300) for key in ("lr", "weight_decay", "init_std", "residual_multiplier")),
        (DataConfig, "batch_size", 2**63),
        (DataConfig, "batch_size", 2.5),
        (TrainerConfig, "spike_window", 1),
        (TrainerConfig, "strategy", "zero4"),
        (ModelConfig, "activation", "swish"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_key(section, key, value):
    prefix = section._prefix
    with pytest.raises(UserError, match=rf"^{prefix}{key} is {re.escape(repr(value))}; expected "):
        section(**{key: value})
    if prefix != "slurm.":
        with pytest.raises(UserError, match=rf"^{prefix}{key} is {re.escape(repr(value))}; expected "):
            Config.from_plain({prefix[:-1]: {key: value}})


def test_plain_values_are_the_same_configuration():
    config = Config.from_plain({"model": {"width": 64, "depth": 2}, "data": {"tokenizer": "bytes"}, "seed": 3})
    assert Config.from_plain(asdict(config)) == config
    assert config.model.vocab_size == 256
    with pytest.raises(UserError, match=r"unknown option model\.breadth"):
        Config.from_plain({"model": {"breadth": 3}})


def test_places_and_intervals_are_no_part_of_the_identity():
    config = Config()
    other = replace(
        config, trainer=replace(config.trainer, max_steps=9, log_every=1), run=replace(config.run, name="x")
    )
    assert identity(other) == identity(config)
    assert identity(replace(config, seed=1)) != identity(config)


@dataclass
class Inner(Typed, prefix="inner."):
    """Inner.

    Attributes:
        word: any text,
            in two lines.
    """

    word: str | None = None


@dataclass
class Sample(Typed, prefix="--"):
    """A sample.

    Attributes:
        sizes: of the models.
    """

    sizes: tuple[PositiveInt, ...]
    pair: tuple[float, float] = (1.0, 2.0)
    out: Path | None = None
    switch: Literal["auto", "on", "off"] = "auto"
    table: dict[str, dict[str, Any]] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("sizes", "1,2,3", (1, 2, 3)),
        ("sizes", "[4]", (4,)),
        ("sizes", "1e4,2.5E1", (10_000, 25)),
        ("pair", "1e-3,2", (0.001, 2.0)),
        ("out", "12", Path("12")),
        ("out", "null", Path("null")),
        ("out", "~/x", Path.home() / "x"),
        ("out", "~x", Path("~x")),
        ("inner", {"word": "~/x"}, Inner(str(Path.home() / "x"))),
        ("switch", "off", "off"),
        ("table", "{muon: {steps: 6}}", {"muon": {"steps": 6}}),
    ],
)
def test_text_of_the_command_line_is_read_as_the_type_asks(key, text, value):
    raw = Raw(text) if isinstance(text, str) else text
    assert getattr(build(Sample, {"sizes": [1], key: raw}), key) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "sizes is missing; expected a list, each whole number of at least 1"),
        ({"sizes": ["1e-1"]}, r"sizes is \['1e-1'\]; expected a list"),
        ({"sizes": ["15e-1"]}, "expected a list"),
        ({"sizes": [1, 0]}, r"sizes is \[1, 0\]; expected a list"),
        ({"sizes": [1], "pair": [1]}, "expected 2 values, each finite number"),
        ({"sizes": [1], "inner": {"wrod": 1}}, "unknown option inner.wrod; did you mean inner.word"),
        ({"sizes": [1], "table": {"muon": 3}}, r"table is .*; expected keys and values below it"),
    ],
)
def test_wrong_values_of_any_dataclass(values, message):
    with pytest.raises(UserError, match=message):
        build(Sample, values)


def test_docstrings_are_the_help_texts():
    known = {option.key: option for option in options(Sample)}
    assert known["inner.word"].text == "any text, in two lines"
    assert describe(hints(Sample)["pair"]) == "2 values, each finite number"
    assert all(option.text for option in options(Config) if not option.key.startswith("rules."))
