"""Tables of losses for the tests of the transfer report."""

import csv

import numpy as np

from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.transfer import to_dict, transfer

COLUMNS = ("parametrization", "axis", "size", "log2_value", "seed", "loss")
SIZES = (64, 128, 256, 512)


def write(path, rows, columns=COLUMNS):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def curves(sizes, optima, noise=0.0, seeds=1, name="mup", grid=range(-10, -3), curvature=0.04, chance=None, luck=0.0):
    """Rows of exact parabolas: the loss falls by 0.1 with each size. luck: what a seed adds to all losses of a size."""
    chance = chance or np.random.default_rng(0)
    shares = {(size, seed): luck * chance.normal() if luck else 0.0 for size in sizes for seed in range(seeds)}
    return [
        (
            *(name, "width", size, value, seed),
            3 - 0.1 * i + curvature * (value - best) ** 2 + shares[size, seed] + noise * chance.normal(),
        )
        for i, (size, best) in enumerate(zip(sizes, optima, strict=True))
        for value in grid
        for seed in range(seeds)
    ]


def groups(path, **options):
    return to_dict(transfer(read_losses(path), **options))["groups"]


def report(tmp_path, rows, **options):
    (group,) = groups(write(tmp_path / "table.csv", rows), **options)
    return group


# Three of the tables of arXiv 2603.00541v2, appendix E.3, typed from the text: Muon-Kimi with LayerNorm.
PUBLISHED = {
    "SP": {
        "128": [5.127, 4.685, 4.45, 4.373, 4.364, 4.372],
        "256": [4.552, 4.219, 4.081, 4.053, 4.062, 4.091],
        "512": [4.093, 3.886, 3.819, 3.833, 3.837, 4.062],
        "1024": [3.817, 3.699, 3.672, 3.68, 3.952, 5.603],
        "2048": [3.654, 3.571, 3.555, 3.798, 5.472, 6.438],
        "4096": [3.56, 3.516, 3.747, 5.557, 6.159, 6.552],
    },
    "muP k>=2": {
        "128": [4.875, 4.53, 4.42, 4.374, 4.383, 4.397],
        "256": [4.561, 4.227, 4.081, 4.059, 4.079, 4.104],
        "512": [4.305, 3.974, 3.83, 3.811, 3.828, 3.873],
        "1024": [4.125, 3.798, 3.654, 3.646, 3.676, 3.726],
        "2048": [3.957, 3.636, 3.516, 3.515, 3.552, 3.689],
        "4096": [3.882, 3.531, 3.446, 3.461, 3.523, 3.752],
    },
}
NO_NORM = {"4": [7.318, 6.394, 5.784, 5.169, 13.77], "8": [6.775, 5.974, 5.426, 4.811, None]}


def published():
    """The form of the published losses' file."""
    tables = {
        name: {
            "optimizer": "Muon-Kimi-AdamW",
            "parametrization": name,
            "axis": "width",
            "hyperparameter": "lr",
            "layernorm": True,
            "log2_values": [-10, -9, -8, -7, -6, -5],
            "validation_loss": losses,
        }
        for name, losses in PUBLISHED.items()
    }
    tables["none"] = tables["SP"] | {
        "axis": "depth",
        "layernorm": False,
        "log2_values": [-13, -12, -11, -10, -9],
        "validation_loss": NO_NORM,
    }
    return {"source": "typed", "tables": tables}
