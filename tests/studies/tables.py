"""Tables of losses for the tests of the transfer report."""

import csv
import re

import numpy as np

from mup_lightning.studies.transfer.losses import read_losses
from mup_lightning.studies.transfer.report import to_dict
from mup_lightning.studies.transfer.verdict import transfer

COLUMNS = ("parametrization", "axis", "size", "log2_value", "seed", "loss")
SIZES = (64, 128, 256, 512)


def write(path, rows, columns=COLUMNS):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def _commas(text, separator):
    """As a spreadsheet of a country with decimal commas saves a table, with a blank row and two blank columns."""
    rows = [[re.sub(r"^( ?-?\d+)\.(\d+)", r"\1,\2", cell) for cell in row] for row in csv.reader(text.splitlines())]
    return "".join(separator.join([*row, "", ""]) + "\r\n" for row in [*rows, [""] * len(rows[0])])


SAVED = {
    "mark": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "old": lambda text: text.replace("\n", "\r").encode(),
    "quoted": lambda text: re.sub(r"[^,\n]+", r'"\g<0>"', text.replace("\n", ",,\n") + ",,,,\n").encode(),
    "commas": lambda text: b"\xef\xbb\xbf" + _commas(text, ";").encode(),
    "utf-16": lambda text: _commas(text, "\t").encode("utf-16"),
}
"""How spreadsheets save a table: text -> bytes."""


def curves(sizes, optima, noise=0.0, seeds=1, name="mup", grid=range(-10, -3), curvature=0.04, chance=None, effect=0.0):
    """Rows of exact parabolas; the loss falls by 0.1 with each size.

    noise and effect: standard deviations of each loss, and of what a seed adds to all losses of a size.
    """
    chance = chance or np.random.default_rng(0)
    shares = {(size, seed): effect * chance.normal() if effect else 0.0 for size in sizes for seed in range(seeds)}
    return [
        (
            *(name, "width", size, value, seed),
            3 - 0.1 * i + curvature * (value - best) ** 2 + shares[size, seed] + noise * chance.normal(),
        )
        for i, (size, best) in enumerate(zip(sizes, optima, strict=True))
        for value in grid
        for seed in range(seeds)
    ]


def judged(tmp_path, rows, columns=COLUMNS, **options):
    """The groups of a table of these rows."""
    return transfer(read_losses(write(tmp_path / "table.csv", rows, columns)), **options)


def report(tmp_path, rows, **options):
    """The only group, as plain values."""
    (group,) = to_dict(judged(tmp_path, rows, **options))["groups"]
    return group


def lose(rows, lost):
    """The rows, without a loss where `lost(size, value, seed)`."""
    return [(*row[:5], "") if lost(*row[2:5]) else row for row in rows]
