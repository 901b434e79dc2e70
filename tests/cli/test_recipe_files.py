"""Recipe files that say what no run can have: one line each, before anything is trained; and words that YAML reads."""

import pytest

from mup_lightning.cli.main import main
from mup_lightning.config.load import build, config_parser, parse
from mup_lightning.errors import UserError


def composed(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return build(parser := config_parser("test", "", ""), parse(parser, ["-c", "recipes/gpt2.yaml", "-c", str(file)]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: []", r"mine\.yaml: recipe is \[\]; expected keys and values below it"),
        ("recipe: 5", r"mine\.yaml: recipe is 5; expected keys"),
        ("recipe:", r"mine\.yaml: recipe is empty; expected keys"),
        ("rules: {muon: 3}", r"mine\.yaml: rules\.muon is 3; expected keys"),
        ("rules: []", r"mine\.yaml: rules is \[\]; expected keys"),
        ("# nothing yet", r"mine\.yaml is empty; expected a recipe: sections such as model"),
        ("[1, 2]", r"mine\.yaml is \[1, 2\]; expected a recipe: sections such as model"),
        ("recipe: {lr: .inf}", r"recipe\.lr is inf; expected finite numbers"),
        ("recipe: {output_multiplier: .nan}", r"recipe\.output_multiplier is nan; expected a number above 0"),
        ("recipe: {residual_multiplier: .inf}", r"recipe\.residual_multiplier is inf; expected finite numbers"),
        ("recipe: {input_multiplier: 0}", r"recipe\.input_multiplier is 0\.0; expected a number above 0"),
        ("schedule: {min_lr: .nan}", r"schedule\.min_lr is nan; expected finite numbers"),
        (
            "rules: {muon: {coefficients: [.nan, 1, 1]}}",
            r"rules\.muon\.coefficients is .*; expected finite numbers",
        ),
        ("trainer: {peak_flops: on}", r"trainer\.peak_flops is True; expected FLOP/s of one device"),
        ("trainer: {spike_sigmas: 0, spike_stop: 3}", r"trainer\.spike_sigmas is 0, which looks for no spikes"),
        ("run: {name: ''}", r"run\.name is ''; expected the name of a folder in runs"),
        ("run: {name: .}", r"run\.name is '\.'; expected the name of a folder in runs"),
        ("seed: -1", r"seed is -1; expected a whole number of at least 0"),
    ],
)
def test_what_no_run_can_have_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        composed(tmp_path, text)


@pytest.mark.parametrize(("word", "meant"), [("on", "on"), ("off", "off"), ("'off'", "off"), ("auto", "auto")])
def test_on_and_off_are_words_though_yaml_reads_them_as_true_and_false(tmp_path, word, meant):
    assert composed(tmp_path, f"trainer: {{compile: {word}}}").trainer.compile == meant
    assert composed(tmp_path, "trainer: {peak_flops: off}").trainer.peak_flops == "off"


def test_an_option_is_not_blamed_on_a_file(capsys):
    words = ["--sweep", "recipes/experiment/lr_width.yaml", "--tasks", "2", "-c", "recipes/slurm/default.yaml"]
    assert main(["submit", *words, "--slurm.foo", "3"]) == 1
    assert capsys.readouterr().err.startswith("error: unknown option slurm.foo; ")
    assert main(["submit", *words, "--tasks", "two"]) == 1
    assert "default.yaml" not in capsys.readouterr().err
