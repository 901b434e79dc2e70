"""docs/guide/tensorboard.md names every tag that a run writes, and none that no run writes."""

import re
from pathlib import Path

import pytest

from mup_lightning.optim.registry import RULES
from mup_lightning.studies.features.runs import read_scalars
from mup_lightning.training.train import train

DOCS = Path(__file__).parents[2] / "docs" / "guide" / "tensorboard.md"
MATRICES = ["attention_query", "attention_key", "attention_value", "attention_out", "mlp_up", "mlp_down"]
PLACEHOLDERS = {
    "RULE": list(RULES),
    "BRANCH": ["attention", "mlp"],
    "MATRIX": MATRICES,
    "LAYERS": ["layer_i", "mean", "min", "max"],
}


def table():
    """Tag -> the other cells of its line."""
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in DOCS.open() if line.startswith("| `")]
    assert all(len(line) == 4 for line in lines)
    tags = {line[0].strip("`"): line[1:] for line in lines}
    assert len(tags) == len(lines)
    return tags


def expanded(tag):
    """A tag of the table with every word in the place of its placeholders."""
    for placeholder, words in PLACEHOLDERS.items():
        if placeholder in tag.split("/"):
            return [full for word in words for full in expanded(tag.replace(placeholder, word))]
    return [tag]


@pytest.mark.parametrize("optimizer", ["muon_kimi", "adamw"])
def test_the_table_is_what_a_run_writes(tiny, optimizer):
    config = tiny(**{"recipe.optimizer": optimizer, "trainer.spectral_norms_every": 4})
    written = read_scalars(Path(train(config, progress=False).tensorboard)).keys()
    assert {f"layer_{layer:03d}" for layer in range(2)} == {
        part for tag in written for part in re.findall(r"layer_\d+", tag)
    }
    written = {re.sub(r"layer_\d+", "layer_i", tag) for tag in written}
    named = {full for tag in table() for full in expanded(tag)}
    used = {"adamw", optimizer}
    wanted = {tag for tag in named if tag.split("/")[-1] not in set(RULES) - used}
    assert written == wanted


def test_every_line_says_what_it_means():
    assert all(meaning and unit for meaning, unit, _ in table().values())
