"""What is told and drawn of the assumption checks: only what their file says."""

import numpy as np
import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.assumptions.assumption_figures import curve, draw_assumptions, matrices, picture
from mup_lightning.studies.assumptions.assumption_results import CLAIMS, FORMULAS, read_assumptions
from mup_lightning.studies.assumptions.report import markdown, screen

DEPTHS, SEEDS, OPTIMIZERS = [2, 4, 8], 2, ["adamw", "sgd"]
MATRICES = {"mlp": ["input", "first"], "gpt2": ["token", "value", "up"]}


def result():
    """A ratio of 0.9 at the start, 0.6 in the middle, and 0.3/L at the end; SGD's is half of it, seed 1's a tenth more.

    Blocks differ, but by something that averages out.
    """
    runs, verdicts = [], []
    for network, names in MATRICES.items():
        for optimizer in OPTIMIZERS:
            for depth in DEPTHS:
                for seed in range(SEEDS):
                    factor = (1 + 0.1 * seed) * (0.5 if optimizer == "sgd" else 1.0)
                    values = {"start": 0.9, "middle": 0.6, "end": 0.3 / depth}
                    sway = np.linspace(-0.01, 0.01, depth)
                    times = {
                        time: {
                            **{
                                assumption: {
                                    name: [factor * value]
                                    if name in ("input", "token")
                                    else list(factor * value + sway)
                                    for name in names
                                    if assumption != "activation" or name not in ("input", "token")
                                }
                                for assumption in FORMULAS
                            },
                            "weights_step": {name: [0.002, 0.25] for name in names},
                            "features_step": {name: [0.5] for name in names},
                        }
                        for time, value in values.items()
                    }
                    runs.append(
                        {"network": network, "optimizer": optimizer, "depth": depth, "seed": seed, "times": times}
                    )
            for assumption in FORMULAS:
                cells = [
                    {
                        "matrix": name,
                        "time": time,
                        "position": position,
                        "means": [0.5, 0.5, 0.5 + 0.01 * number],
                        "fit": {"exponent": 0.0, "low": -0.1, "high": 0.1, "last": 0.0},
                        "verdict": "holds",
                    }
                    for number, name in enumerate(names)
                    if assumption != "activation" or number
                    for time in ("start", "middle", "end")
                    for position in (["only"] if number == 0 else ["first", "mean"])
                ]
                cells[-1]["fit"] = {"exponent": -1.0, "low": -1.25, "high": -0.75, "last": -1.0}
                cells[-1]["verdict"] = "does not hold"
                verdicts.append(
                    {
                        "network": network,
                        "optimizer": optimizer,
                        "assumption": assumption,
                        "verdict": "does not hold",
                        "sentence": f"the sentence of {assumption}, {network}, {optimizer}",
                        "cells": cells,
                    }
                )
    return {
        "verdict": "does not hold",
        "verdicts": verdicts,
        "settings": {
            "networks": list(MATRICES),
            "optimizers": OPTIMIZERS,
            "depths": DEPTHS,
            "width": 16,
            "seeds": SEEDS,
            "least": 0.8,
        },
        "measured_at": {"start": 0, "middle": 5, "end": 10},
        "base_lr": {},
        "runs": runs,
    }


def test_a_curve_is_the_mean_over_blocks_of_every_seed():
    found = curve(result(), "gpt2", "sgd", "weights", "up", "end")
    assert list(found) == DEPTHS
    assert found[4] == pytest.approx([0.5 * 0.3 / 4, 0.55 * 0.3 / 4])
    assert matrices(result(), "mlp", "weights") == ["input", "first"]


def test_the_picture_has_a_row_a_network_and_a_line_a_time_and_optimizer():
    figure = picture(result(), "weights")
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == [
        "input matrix",
        "first branch matrix",
        "token embedding",
        "attention: V",
        "MLP: up",
    ]
    assert [ax.get_ylabel().splitlines()[0] for ax in shown if ax.get_ylabel()] == ["residual MLP", "GPT-2"]
    ax = shown[-1]
    lines = [line for line in ax.lines if line.get_marker() in ("o", "s")]
    heights = {(line.get_linestyle(), line.get_color()): list(line.get_ydata()) for line in lines}
    assert len(heights) == 6
    assert heights["-", "#d55e00"] == pytest.approx([0.945] * 3)  # start, AdamW, the mean of both seeds
    assert heights["--", "#0072b2"] == pytest.approx([0.525 * 0.3 / L for L in DEPTHS])  # end, SGD
    assert ax.get_ylim() == (0, 1.05)
    assert any(list(line.get_ydata()) == [0.8, 0.8] for line in ax.lines)  # the threshold
    assert "adamw: exponent -1.00 ± 0.25" in ax.texts[0].get_text()
    title = figure.get_suptitle()
    assert CLAIMS["weights"] in title
    assert "GPT-2: adamw does not hold, sgd does not hold" in title
    # What only has to be flat has no threshold.
    assert not any(list(line.get_ydata()) == [0.8, 0.8] for line in picture(result(), "alignment").axes[0].lines)


def test_pictures_are_written(tmp_path):
    files = draw_assumptions(result(), tmp_path)
    assert [file.name for file in files] == [f"assumptions_{name}.png" for name in FORMULAS]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_the_screen_has_every_sentence():
    text = screen(result())
    for verdict in result()["verdicts"]:
        assert verdict["sentence"] in text
    assert "depths 2, 4, 8, width 16, 2 seeds, after steps 0 (start), 5 (middle), 10 (end)" in text


def test_the_table_has_a_row_for_every_verdict():
    lines = markdown(result()).splitlines()
    assert len(lines) == 2 + 4 * 2 * 2
    row = lines[2]
    assert "residual MLP | adamw | does not hold | 0.50 to 0.51 | 0.002 to 0.25 |" in row
    assert "-1.00 ± 0.25 (first, end, mean over blocks) | 8 of 9 |" in row
    assert {line.count("|") for line in lines} == {9}


def test_files_are_checked(tmp_path):
    with pytest.raises(UserError, match="make it with mup-lightning assumptions"):
        read_assumptions(tmp_path / "assumptions.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_assumptions(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"verdict": "holds"}')
    with pytest.raises(UserError, match="no result of mup-lightning assumptions"):
        read_assumptions(tmp_path / "a.json")
