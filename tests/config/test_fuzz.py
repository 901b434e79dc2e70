"""The short form of `python -m tests.config.fuzz`."""

from tests.config.fuzz import main


def test_random_settings_end_in_a_step_or_in_one_line(capsys):
    assert main(60, 0), capsys.readouterr().out
