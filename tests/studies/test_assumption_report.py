"""The assumption checks in words, as a table and as figures."""

import numpy as np
import pytest

from mup_lightning.studies.assumptions.report import CLAIMS, AssumptionResult, by_depth, draw, markdown, picture, text
from mup_lightning.studies.assumptions.settings import AssumptionSettings
from mup_lightning.studies.assumptions.verdict import FORMULAS, Run, conclude

MATRICES = {"mlp": ["input", "first"], "gpt2": ["token", "value", "up"]}
SETTINGS = AssumptionSettings(depths=[2, 4, 8], seeds=2, width=16, steps=10, optimizer=["adamw", "sgd"])


@pytest.fixture(scope="module")
def result():
    """A ratio of 0.9 at the start, 0.6 in the middle, and 0.3/L at the end; SGD's is half of it, seed 1's a tenth more.

    Blocks differ, but by something that averages out.
    """

    def blocks(name, depth, value):
        if name in ("input", "token"):
            return [value]
        return list(value + np.linspace(-0.01, 0.01, depth))

    runs = []
    for network, names in MATRICES.items():
        for optimizer in SETTINGS.optimizer:
            for depth in SETTINGS.depths:
                for seed in range(SETTINGS.seeds):
                    factor = (1 + 0.1 * seed) * (0.5 if optimizer == "sgd" else 1.0)
                    times = {}
                    for time, value in {"start": 0.9, "middle": 0.6, "end": 0.3 / depth}.items():
                        ratios = {
                            assumption: {
                                name: blocks(name, depth, factor * value)
                                for name in names
                                if assumption != "activation" or name not in ("input", "token")
                            }
                            for assumption in FORMULAS
                        }
                        steps = {"weights_step": {"first": [0.002, 0.25]}, "features_step": {"first": [0.5]}}
                        times[time] = ratios | steps
                    runs.append(Run(network, optimizer, depth, seed, [], times))
    findings = [
        conclude([run for run in runs if (run.network, run.optimizer) == (network, optimizer)], assumption, SETTINGS)
        for network in MATRICES
        for optimizer in SETTINGS.optimizer
        for assumption in FORMULAS
    ]
    return AssumptionResult(SETTINGS, {}, findings, {}, runs)


def test_a_curve_is_the_mean_over_blocks_of_every_seed(result):
    found = by_depth(result, "gpt2", "sgd", "weights", "up", "end")
    assert found[1] == pytest.approx([0.5 * 0.3 / 4, 0.55 * 0.3 / 4])
    assert len(found) == 3


def test_the_picture_has_a_row_for_each_network_and_a_line_for_each_time_and_optimizer(result):
    figure = picture(result, "weights")
    shown = [ax for ax in figure.axes if ax.get_visible()]
    titles = ["input matrix", "first branch matrix", "token embedding", "attention: V", "MLP: up"]
    assert [ax.get_title() for ax in shown] == titles
    assert [ax.get_ylabel().splitlines()[0] for ax in shown if ax.get_ylabel()] == ["residual MLP", "GPT-2"]
    ax = shown[-1]
    lines = [line for line in ax.lines if line.get_marker() in ("o", "s")]
    heights = {(line.get_linestyle(), line.get_color()): list(line.get_ydata()) for line in lines}
    assert len(heights) == 6
    assert heights["-", "#d55e00"] == pytest.approx([0.945] * 3)  # start, AdamW, the mean of both seeds
    assert heights["--", "#0072b2"] == pytest.approx([0.525 * 0.3 / L for L in (2, 4, 8)])  # end, SGD
    assert ax.get_ylim() == (0, 1.05)
    assert any(list(line.get_ydata()) == [0.8, 0.8] for line in ax.lines)  # the threshold
    assert "adamw: exponent -1.00 ± 0.00" in ax.texts[0].get_text()
    assert CLAIMS["weights"] in figure.get_suptitle()
    assert "GPT-2: adamw FAIL, sgd FAIL" in figure.get_suptitle()
    # What only has to be flat has no threshold.
    assert not any(list(line.get_ydata()) == [0.8, 0.8] for line in picture(result, "alignment").axes[0].lines)


def test_pictures_are_written(result, tmp_path):
    files = draw(result, tmp_path)
    assert [file.name for file in files] == [f"assumptions_{name}.png" for name in FORMULAS]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_the_text_has_every_sentence(result):
    found = text(result)
    assert all(finding.sentence in found for finding in result.findings)
    assert "depths 2, 4, 8, width 16, 2 seeds, after steps 0 (start), 5 (middle), 10 (end)" in found


def test_the_table_has_a_row_for_every_verdict(result):
    lines = markdown(result).splitlines()
    assert len(lines) == 2 + 4 * 2 * 2
    assert "residual MLP | adamw | FAIL | 0.03 to 0.96 | 0.002 to 0.25 |" in lines[2]
    assert "-1.00 ± 0.00 (input, end) | 5 of 15 |" in lines[2]
    assert {line.count("|") for line in lines} == {9}
