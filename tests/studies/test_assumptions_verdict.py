"""From measured ratios to verdicts, in words, a table, figures and an exit status; a seeded violation fails."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mup_lightning.cli.main import main
from mup_lightning.errors import UserError
from mup_lightning.files import read_json
from mup_lightning.studies.assumptions import TIMES, AssumptionSettings
from mup_lightning.studies.assumptions import measure as measuring
from mup_lightning.studies.assumptions.measure import check, trainings
from mup_lightning.studies.assumptions.report import CLAIMS, Assumptions, conclude, markdown, picture, text
from mup_lightning.studies.scaling import Run

SETTINGS = AssumptionSettings(network="mlp", optimizer=["adamw"])


def runs(ratio, noise=0.01, assumption="alignment"):
    """Runs whose ratio, in every block, is ratio(depth), but for some noise between seeds and blocks."""
    generator = np.random.default_rng(0)
    result = []
    for depth in SETTINGS.depths:
        for seed in range(SETTINGS.seeds):
            values = (ratio(depth) * np.exp(noise * generator.normal(size=depth))).tolist()
            times = {time: {assumption: {"first": list(values), "input": values[:1]}} for time in TIMES}
            result.append(Run(("mlp", "adamw"), (64, depth), seed, [], times))
    return result


@pytest.mark.parametrize(
    ("ratio", "assumption", "noise", "least", "verdict", "words"),
    [
        (lambda L: 20.0, "alignment", 0.01, 0.8, "PASS", "ratio between 19."),
        (lambda L: 20 * (L / 4) ** -0.5, "alignment", 0.01, 0.8, "FAIL", ": L^-0.5"),
        (lambda L: 20 * (L / 4) ** 0.2, "alignment", 0.01, 0.8, "FAIL", "15 of 15 exponents lie outside their bands: "),
        (lambda L: 0.7, "weights", 0.01, 0.8, "FAIL", "; below 0.8 in 15 of 15 lines"),
        (lambda L: 0.7, "weights", 0.01, 0.6, "PASS", "exponents lie in their bands"),
        (lambda L: 0.7, "alignment", 0.01, 0.8, "PASS", "exponents lie in their bands"),
        (lambda L: 20.0, "alignment", 0.5, 0.8, "UNCLEAR", "intervals cross an edge of their bands"),
    ],
)
def test_verdicts(ratio, assumption, noise, least, verdict, words):
    """Growth and decay fail, and a flat cancellation where the ratio should be near one; noise is unclear."""
    found = conclude(runs(ratio, noise, assumption), assumption, replace(SETTINGS, least=least))
    assert found.verdict == verdict
    assert words in found.sentence
    assert verdict != "FAIL" or {line.verdict for line in found.lines} == {"FAIL"}
    assert len(found.lines) == 3 * (4 + 1)
    assert {line.label[2] for line in found.lines if line.label[0] == "input"} == {"only"}
    if ratio(1) == ratio(64):
        assert all(abs(line.fit.exponent) < 2 * noise for line in found.lines)


def test_noise_in_single_blocks_does_not_leave_it_unclear_but_their_growth_fails():
    def seeded(last):
        result = runs(lambda L: 20.0)
        for run in result:
            run.measured["end"]["alignment"]["first"][-1] *= last(run.shape[1], run.seed)
        return conclude(result, "alignment", SETTINGS)

    noisy = seeded(lambda depth, seed: (0.5, 1.0, 2.0)[seed] ** (depth == 64))
    assert {line.label[2] for line in noisy.lines if line.verdict == "UNCLEAR"} == {"last"}
    assert noisy.verdict == "PASS"
    assert seeded(lambda depth, seed: depth**0.5).verdict == "FAIL"


def test_attention_s_averaging_is_measured_but_not_judged():
    result = runs(lambda L: 1.0, assumption="activation")
    for run in result:
        depth = run.shape[1]
        for ratios in run.measured.values():
            ratios["activation"] = {"value": [1 / depth] * depth, "up": [0.5] * depth}
    found = conclude(result, "activation", SETTINGS)
    assert {line.verdict for line in found.lines if line.label[0] == "value"} == {None}
    assert found.verdict == "PASS"
    assert "ratio between 0.50 and 0.50" in found.sentence


@pytest.fixture(scope="module")
def result():
    """A ratio of 0.9 at the start, 0.6 in the middle, and 0.3/L at the end; SGD's is half of it, seed 1's a tenth more.

    Blocks differ, but by something that averages out.
    """
    settings = AssumptionSettings(depths=[2, 4, 8], seeds=2, width=16, steps=10, optimizer=["adamw", "sgd"])
    outside = ("input", "token")

    def measured(names, depth, factor):
        times = {}
        for time, value in {"start": 0.9, "middle": 0.6, "end": 0.3 / depth}.items():
            blocks = list(factor * value + np.linspace(-0.01, 0.01, depth))
            of = {name: [factor * value] if name in outside else blocks for name in names}
            inside = {name: of[name] for name in names if name not in outside}
            times[time] = {name: inside if name == "activation" else of for name in CLAIMS}
            times[time] |= {"weights_step": {"first": [0.002, 0.25]}, "features_step": {"first": [0.5]}}
        return times

    found = [
        Run((network, optimizer), (16, depth), seed, [], measured(names, depth, (1 + 0.1 * seed) * factor))
        for network, names in {"mlp": ["input", "first"], "gpt2": ["token", "value", "up"]}.items()
        for optimizer, factor in {"adamw": 1.0, "sgd": 0.5}.items()
        for depth in settings.depths
        for seed in range(settings.seeds)
    ]
    pairs = dict.fromkeys(run.of for run in found)
    findings = [conclude([run for run in found if run.of == of], name, settings) for name in CLAIMS for of in pairs]
    return Assumptions(settings=settings, base_lr={}, findings=findings, runs=found, versions={})


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
    seeds = 1.1**0.5  # the geometric mean of both
    assert heights["-", "#d55e00"] == pytest.approx([0.9 * seeds] * 3)  # start, AdamW
    assert heights["--", "#0072b2"] == pytest.approx([0.15 * seeds / L for L in (2, 4, 8)])  # end, SGD
    assert ax.get_ylim() == (0, 1.05)
    assert any(list(line.get_ydata()) == [0.8, 0.8] for line in ax.lines)  # the threshold
    assert "adamw: L^-1.00 ± 0.00" in [words.get_text() for words in ax.texts]
    assert "GPT-2: adamw FAIL, sgd FAIL" in figure.get_suptitle()
    # What only has to be flat has no threshold.
    assert not any(list(line.get_ydata()) == [0.8, 0.8] for line in picture(result, "alignment").axes[0].lines)


def test_the_text_and_the_table_have_every_finding(result):
    found = text(result)
    assert all(f"{finding.verdict}: {finding.sentence}" in found for finding in result.findings)
    assert "depths 2, 4, 8, width 16, 2 seeds, after steps 0 (start), 5 (middle), 10 (end)" in found
    lines = markdown(result).splitlines()
    assert len(lines) == 2 + 4 * 2 * 2
    assert "residual MLP | adamw | FAIL | 0.03 to 0.96 | 0.002 to 0.25 |" in lines[2]
    assert "-1.00 ± 0.00 (input, end) | 5 of 15 |" in lines[2]
    assert {line.count("|") for line in lines} == {9}


def tiny(**changes):
    values = {"network": "mlp", "depths": [2, 4, 8], "width": 16, "seeds": 2, "steps": 6, "batch": 8, "workers": 0}
    return AssumptionSettings(**values | changes)


def by_name(result):
    return {found.of[2]: found.verdict for found in result.findings}


def test_a_network_that_violates_an_assumption_is_found_out(monkeypatch):
    """Seeded: samples whose gradients cancel more and more, the deeper the network is."""
    settings = tiny(depths=[4, 8, 16], width=32, seeds=4, batch=16, optimizer=["sgd"], tolerance=0.25)
    good = by_name(check(settings))
    assert (good["weights"], good["alignment"]) == ("PASS", "PASS")

    depth = 0
    real_gradients, real_measure = measuring.own_gradients, measuring.measure

    def cancelling(*inputs, **options):
        gradients = real_gradients(*inputs, **options)
        return gradients - (1 - 2 / depth) * gradients.mean(0)

    def watched(training):
        nonlocal depth
        depth = training[1].model.depth
        return real_measure(training)

    monkeypatch.setattr(measuring, "own_gradients", cancelling)
    monkeypatch.setattr(measuring, "measure", watched)
    bad = by_name(check(settings))
    assert (bad["weights"], bad["alignment"]) == ("PASS", "FAIL")


def test_learning_rates_are_those_of_the_file_or_of_the_recipe(tmp_path):
    """With the first one a step is larger than its weight, which turns round; with the second it diverges."""
    file = tmp_path / "rates.yaml"
    file.write_text("mlp: {sgd: 3.0}\ngpt2: {}\n")
    result = check(tiny(optimizer=["sgd"], warmup=0, steps=2, rates=str(file)))
    assert by_name(result)["weights"] == "FAIL"
    assert [(run.shape, run.seed) for run in result.runs] == [((16, L), seed) for L in (2, 4, 8) for seed in (0, 1)]
    assert result.base_lr == {"mlp": {"sgd": 3.0}}
    assert {config.recipe.lr for _, config in trainings(tiny(optimizer=["adamw"], rates=str(file)))} == {2**-9}
    file.write_text("mlp: {sgd: 1.0e+30}\n")
    with pytest.raises(UserError, match=r"sgd diverged in step \d+ of a mlp of width 16 and depth 4 \(seed 0\)"):
        check(tiny(optimizer=["sgd"], rates=str(file), depths=[2, 3, 4]))


TINY = ["assumptions", *"--width 16 --depths 2,3,4 --seeds 2 --steps 2 --workers 0".split()]


def test_what_the_verb_writes(tmp_path, corpus, capsys):
    out = tmp_path / "deep" / "folder"
    argv = [*TINY, "--optimizer", "muon_kimi", "--data", str(corpus), "--out", str(out), "--json"]
    assert main([*argv, "--least", "0.1", "--tolerance", "9"]) == 0  # thresholds that everything passes
    result = read_json(out / "assumptions.json", "a result")
    assert len(result["findings"]) == 2 * 4
    assert len(result["runs"]) == 2 * 3 * 2
    assert result["versions"]["torch"].startswith("2.")
    assert json.loads(capsys.readouterr().out) == {key: value for key, value in result.items() if key != "runs"}
    assert (out / "table.md").read_text().count("\n") == 2 + 8
    assert all((out / f"assumptions_{name}.png").read_bytes().startswith(b"\x89PNG") for name in CLAIMS)


def test_the_exit_status_is_the_verdict(tmp_path):
    """With a threshold that no ratio passes."""
    argv = [*TINY, "--network", "mlp", "--optimizer", "adamw", "--out", str(tmp_path)]
    assert main([*argv, "--least", "0.9999", "--tolerance", "9"]) == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--network", "cnn"], "--network is cnn; expected one of mlp, gpt2, both"),
        (["--optimizer", "adam"], "there is no recipes/optimizer/adam.yaml; optimizer can be: adamw"),
        (["--data", "nowhere"], "nowhere"),
        (["--rates", "recipes/experiment/tune.yaml"], "recipes/experiment/tune.yaml is {'sweep'"),
        (["--out", "pyproject.toml"], "is not a folder; expected one"),
    ],
)
def test_mistakes_are_one_clear_line(argv, message, capsys):
    assert main([*TINY, *argv]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
