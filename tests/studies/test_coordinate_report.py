"""From norms whose exponents are known to a verdict, in words, tables, figures and a file."""

import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies import style
from mup_lightning.studies.coordinates import CheckSettings
from mup_lightning.studies.coordinates.measure import features, rise
from mup_lightning.studies.coordinates.report import drawn_features, markdown, picture, read_check, text, worst
from tests.studies.coordinate_runs import STEPS, judged, result

WIDTHS = CheckSettings(widths=[64, 128, 256, 512], seeds=3)
WIDER = CheckSettings(widths=WIDTHS.widths, seeds=3, feature_band=0.3)
DEPTHS = CheckSettings(axis="depth", depths=[2, 4, 8, 16], seeds=3)
BOTH = CheckSettings(axis="both", ratios=[1.0, 2.0, 4.0], seeds=3)
GROWING = {("mlp", "norms"): 1.0, ("mlp", "changes"): 1.0}


@pytest.mark.parametrize(
    ("settings", "point", "kind", "power", "layer_norm", "verdict", "words"),
    [
        (WIDTHS, "logits", "norms", 0.3, True, "FAIL", "1 of 45 exponents lie outside their bands: logits, after the "),
        (WIDTHS, "logits", "norms", -0.3, True, "FAIL", "logits, after the last step: n^-0.3"),
        (WIDTHS, "logits", "norms", 0.2, True, "FAIL", "logits, after the last step: n^+0.2"),
        (WIDER, "logits", "norms", 0.2, True, "PASS", ""),  # thresholds are options
        (WIDTHS, "mlp", "changes", 0.5, True, "FAIL", "its change after the last step: n^+0.5"),
        (WIDTHS, "attention", "changes", -0.5, True, "FAIL", "its change after the last step: n^-0.5"),
        # Below the smallest float.
        (WIDTHS, "mlp", "changes", -2000.0, True, "FAIL", "its change after the last step: zero, allowed ±0.15"),
        # At initialisation only sums of random terms may shrink: the head's random products,
        (WIDTHS, "logits", "init", 0.0, True, "PASS", "all 45 exponents lie in their bands; nearest to an edge: "),
        (WIDTHS, "logits", "init", -0.5, True, "PASS", ""),
        (WIDTHS, "logits", "init", -1.0, True, "FAIL", ""),
        (WIDTHS, "logits", "init", 0.5, True, "FAIL", ""),
        (WIDTHS, "embedding", "init", -0.5, True, "FAIL", ""),
        # the sum of L random branches of size 1/L,
        (DEPTHS, "residual", "init", -0.5, True, "PASS", ""),
        (DEPTHS, "residual", "init", -1.0, True, "FAIL", ""),
        (DEPTHS, "residual", "init", 0.5, True, "FAIL", ""),
        (DEPTHS, "embedding", "init", -0.5, True, "FAIL", ""),
        # whose size a LayerNorm takes away; the first block receives the embedding.
        (DEPTHS, "final_norm", "init", -0.5, True, "FAIL", ""),
        (DEPTHS, "final_norm", "init", -0.5, False, "PASS", ""),
        (DEPTHS, "mlp", "init", -0.5, False, "FAIL", ""),
        (BOTH, "logits", "init", -1.0, True, "FAIL", ""),
        (BOTH, "logits", "init", -1.0, False, "PASS", ""),
    ],
)
def test_growth_and_vanishing_fail_by_name(settings, point, kind, power, layer_norm, verdict, words):
    found = judged(settings, {(point, kind): power}, layer_norm=layer_norm)
    assert found.verdict == verdict
    assert words in found.sentence
    # The one that is named; and after the last step no other fails.
    failed = [worst(found.lines), *(line for line in found.lines if line.verdict == "FAIL" and kind != "init")]
    if verdict == "FAIL":
        assert {line.label[0].split(",")[0] for line in failed} == {point}
        assert (failed[0].label[1] == "init") == (kind == "init")


def test_noise_is_unclear():
    noisy = judged(WIDTHS, noise=0.1)
    assert noisy.verdict == "UNCLEAR"
    assert "more seeds" in noisy.sentence
    assert len(noisy.lines) == 15 * 3  # 3 single features, 3 points at 4 places


def test_of_several_faults_the_first_is_named():
    """What training makes of a wrong start is larger, but follows from it."""
    found = judged(WIDTHS, {("mlp", "norms"): 3.0, ("embedding", "init"): 0.5})
    assert worst(found.lines).label == ("embedding", "init")
    assert found.sentence.startswith("before the first step 1 of 15 exponents lie outside their bands: embedding, at ")


def test_divergence_of_the_smallest_model_is_unclear_and_of_a_larger_one_fails():
    found = judged(WIDTHS, diverged=[(64, 2), (512, 2)])
    assert found.verdict == "UNCLEAR"
    assert "diverges at the smallest size already, width 64, depth 2" in found.sentence
    assert found.lines == []  # two sizes are left: no line

    found = judged(WIDTHS, diverged=[(512, 2)])
    assert found.verdict == "FAIL"
    assert found.sentence == (
        "training diverges at width 512, depth 2, but not at the smallest size; exponents are of the other sizes"
    )
    assert found.notes[0] == "diverged: (512, 2) seed 1: step 1: the loss is nan"
    assert len(found.lines[0].values[0]) == 3


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([5.5, 400.0], "step 2: the loss is 400; it was 5.5 in step 1, and a uniform guess has 5.545"),
        ([5.5, 5.4, 6.6], "step 3: the loss is 6.6"),
        ([5.5, 6.4, 5.0], None),  # a nat is not much in a first step
        ([5.7, 6.6], "step 2: the loss is 6.6"),  # more than a nat above ln V
        ([4.0, 5.1], "step 2: the loss is 5.1"),  # below ln V, but a nat is lost
        ([9.0, 8.0, 7.0], None),  # a bad start that improves
        ([9.0, 9.1], "step 2: the loss is 9.1"),
        ([5.5], None),
        ([], None),
    ],
)
def test_a_loss_that_rises_has_diverged_though_it_is_finite(losses, told):
    found = rise(losses, 256)
    assert (found is None) == (told is None)
    assert told is None or found.startswith(told)


def test_blocks_are_compared_at_equal_fractions_of_the_depth():
    assert "residual, first block" in features("width", 4)
    assert "residual, first block" not in features("depth", 4)  # 1/L of the way
    assert [features("depth", n)["residual, middle block"] for n in (2, 8)] == [["residual/0"], ["residual/3"]]
    assert [features("depth", n)["mlp, middle block"] for n in (2, 8)] == [["mlp/1"], ["mlp/4"]]
    assert features("depth", 8)["mlp, last block"] == ["mlp/7"]
    assert features("depth", 3)["mlp, largest"] == ["mlp/0", "mlp/1", "mlp/2"]


def test_ratios_make_whole_sizes():
    settings = CheckSettings(axis="both", ratios=[1.0, 1.5, 2.0])
    assert list(settings.sizes(64, 2)) == [(64, 2), (96, 3), (128, 4)]
    with pytest.raises(UserError, match=r"--ratios: 1\.5 times width 64 and depth 1 are not whole numbers"):
        settings.sizes(64, 1)


def test_a_check_is_read_back_as_it_was_written_and_other_files_are_refused(tmp_path):
    check = result(exponents={("mlp", "changes"): -2000.0}, sp=GROWING, diverged=[(256, 2)])
    file = tmp_path / "check.json"
    check.write(file)
    assert read_check(file) == check
    with pytest.raises(UserError, match=rf"^{tmp_path}/none\.json cannot be read: No such"):
        read_check(tmp_path / "none.json")
    old = "check.json is not a result of this version of mup-lightning coord-check: "
    for content, message in (('{"axis": ', "is damaged"), ('{"axis": "width"}', old + "unknown"), ("[]", old)):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            read_check(file)


def test_the_text_has_all_verdicts_and_every_exponent_of_the_one_asked_for():
    found = text(result(exponents=GROWING, sp=GROWING)).splitlines()
    assert "after 2 steps" in found[1]
    assert next(line for line in found if line.startswith("logits")).count("±") == 3
    assert next(line for line in found if line.startswith("mlp, last block")).count("✗") == 2
    assert found[-3].startswith("SP: FAIL: 8 of 45 exponents lie outside their bands: mlp, ")
    assert found[-1].startswith("recipe, k ≥ 2: FAIL: 8 of 45 exponents lie outside their bands: mlp, ")
    assert ": n^+1.00 ± " in found[-1]


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_one_table_of_many_checks():
    depths = CheckSettings(axis="depth", depths=[2, 4, 8], seeds=3)
    larger = CheckSettings(widths=[256, 512, 1024], seeds=2)
    checks = [
        result(exponents={}, sp=GROWING),
        result(exponents=GROWING, sp={}, branch_depth=1),
        result(exponents=GROWING, asked="sp", optimizer="adamw"),
        result(depths),
        result(larger),
        result(lr=0.001),
        result(lr=0.001),
    ]
    rows = cells(markdown(checks))
    assert [tuple(row[:5]) for row in rows] == [
        ("adamw", "width 64 to 256", "SP", "2^-7", "3"),
        ("muon_kimi", "width 256 to 1024", "recipe, k ≥ 2", "2^-7", "2"),
        ("muon_kimi", "width 64 to 256", "recipe, k ≥ 2", "0.001", "3"),
        ("muon_kimi", "width 64 to 256", "SP", "2^-7", "3"),
        ("muon_kimi", "width 64 to 256", "recipe, k = 1", "2^-7", "3"),
        ("muon_kimi", "width 64 to 256", "recipe, k ≥ 2", "2^-7", "3"),
        ("muon_kimi", "depth 2 to 8", "recipe, k ≥ 2", "2^-7", "3"),
    ]
    assert "+1.00 ± " in rows[4][6]
    assert rows[4][-1].startswith("**FAIL**: 8 of 45")
    assert rows[5][-1].startswith("**PASS**")
    assert {len(row) for row in rows} == {10}


def test_a_check_that_was_asked_for_wins_over_a_control():
    own, control = result(exponents=GROWING, asked="sp"), result(exponents={}, sp={})
    for checks in ([own, control], [control, own]):
        assert "**FAIL**" in cells(markdown(checks))[0][-1]


def test_the_picture_has_a_line_for_each_step_and_sp_next_to_the_recipe(tmp_path):
    check = result(exponents={("final_norm", "changes"): 1.0}, sp=GROWING)
    assert drawn_features(check)[-1] == "final_norm"  # the one that decides is always drawn
    figure = picture(check)
    panels = [ax for ax in figure.axes if ax.get_title() or ax.lines]
    titles = [ax.get_title() for ax in panels if ax.get_title()]
    assert titles == ["SP: ‖h‖_R", "recipe, k ≥ 2: ‖h‖_R", "SP: ‖h − h₀‖_R", "recipe, k ≥ 2: ‖h − h₀‖_R"]
    mlp = panels[4]  # the second row: mlp, last block, under SP
    means = [line for line in mlp.lines if line.get_linestyle() == "-"]
    assert len(means) == STEPS + 1
    assert list(means[-1].get_xdata()) == [64, 128, 256]
    assert means[-1].get_ydata()[2] / means[-1].get_ydata()[0] == pytest.approx(4, rel=0.05)
    assert mlp.get_ylim() == panels[5].get_ylim()  # SP and the recipe on one scale
    assert style.save(figure, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_check_whose_trainings_diverged_can_be_shown():
    check = result(diverged=[(128, 2), (256, 2)])
    assert {written.get_text() for ax in picture(check).axes for written in ax.texts} == {"diverges"}
    assert text(check).startswith("recipe, k ≥ 2: FAIL: training diverges")
    assert "\n  diverged: (128, 2) seed 1: step 1: the loss is nan" in text(check)


def test_what_decides_takes_the_place_of_its_kind():
    check = result(exponents=GROWING)
    assert [name.split(",")[0] for name in drawn_features(check)] == ["attention", "mlp", "residual", "logits"]
    assert drawn_features(check)[1] == worst(check.asked.lines).label[0]
