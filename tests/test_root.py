"""Files, tables and versions that every room uses."""

import math
import os

import pytest

from mup_lightning import tables
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, make_folder, read_json, read_yaml, write_atomic, write_json


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "folder" / "result.json"
    write_json(file, {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"loss": math.nan})

    def power_cut(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="no space left"):
        write_atomic(file, "half of")
    assert read_json(file, "a result") == {"loss": 1.5}
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\na: 2\n", r"mine: line 2 has the key a again \(first in line 1\)"),
        (b"a: [1", "mine is not valid YAML: .*; expected a recipe"),
        (b"# \xe9", "mine is not UTF-8 text; expected a recipe"),
        (None, "mine cannot be read: No such file or directory; expected a recipe"),
    ],
)
def test_a_file_that_is_not_yaml_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "mine").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "mine", "a recipe")


def test_folders_that_cannot_be_made_are_refused_before_they_are_needed(tmp_path):
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is not a folder; expected one, or a name for a new one \(--out\)"):
        check_folder(tmp_path / "file" / "below")


def test_tables_and_numbers_as_people_read_them():
    lines = [["size", "loss"], ["8", "2.5"]]
    assert tables.text(lines) == "size  loss\n8     2.5"
    assert tables.markdown(lines) == "| size | loss |\n| --- | --- |\n| 8 | 2.5 |"
    assert [tables.power_of_two(value) for value in (2**-7, 0.3, 0)] == ["2^-7", "0.3", "0"]
    assert [tables.signed(value) for value in (-0.001, 0.5)] == ["+0.00", "+0.50"]
    assert tables.plus_minus(0.48, 0.03) == "+0.48 ± 0.03"
    assert tables.interval(0.48, 0.45, 0.51) == "+0.48 [+0.45, +0.51]"
