import os
import re
from pathlib import Path

import pytest
import yaml

from mup_lightning.data.card import load_card
from mup_lightning.errors import UserError

DATA = Path(__file__).parents[2] / "data"
GOOD = {
    "name": "x",
    "source": {"kind": "jsonl", "files": "a.jsonl"},
    "validation": {"fraction": 0.1},
    "licence": "MIT",
}


def write(folder, **changes):
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**GOOD, **changes}.items() if v is not ...}))
    return path


def test_a_good_card_as_other_programs_write_it(tmp_path):
    """With a byte order mark, and numbers that YAML takes for text."""
    path = write(tmp_path, validation={"fraction": "2e-1"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"'2e-1'", b"2e-1"))
    card = load_card(path)
    assert card.source.files == ["a.jsonl"]  # one file needs no list
    assert (card.text_column, card.on_bad_document, card.sections) == ("text", "skip", None)
    assert card.validation.fraction == 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "MIT"}, r"licens; did you mean licence\?"),
        ({"source": {"kind": "jsonl", "file": "a"}}, r"source\.file; did you mean source\.files\?"),
        ({"source": {"kind": "jsnl", "files": "a"}}, r"source\.kind is 'jsnl'; expected one of jsonl"),
        ({"source": "a.jsonl"}, r"source is 'a\.jsonl'; expected keys and values"),
        ({"source": {"kind": "jsonl"}}, r"source\.kind is jsonl, which needs source\.files"),
        ({"source": {"kind": "jsonl", "files": [1]}}, r"source\.files is \[1\]; expected"),
        ({"source": {"kind": "jsonl", "files": "a", "document": "line"}}, r"only for kind text"),
        ({"source": {"kind": "jsonl", "files": "a", "subset": "b"}}, r"does not take source\.subset"),
        ({"source": {"kind": "hub", "dataset": "a/b"}}, r"source\.kind is hub, which needs source\.revision"),
        ({"source": {"kind": "hub", "dataset": "a/b", "revision": "c", "files": "d"}}, r"does not take source\.files"),
        ({"validation": {"fraction": 1}}, r"validation\.fraction is 1; expected a number between 0 and 1"),
        ({"licence": ...}, r"licence is missing"),
        ({"name": "a/b"}, r"name is 'a/b'"),
        ({"sections": {"pattern": "("}}, r"sections\.pattern is '\('; expected a regular expression"),
        ({"sections": {"pattern": "x*"}}, r"sections\.pattern is 'x\*'; expected .* not match the empty text"),
        ({"path": "elsewhere"}, r"path"),
    ],
)
def test_a_bad_card_is_refused_by_key(tmp_path, changes, message):
    with pytest.raises(UserError, match=r"x\.yaml: .*" + message):
        load_card(write(tmp_path, **changes))


def test_files_are_found_relative_to_the_card_in_one_order(tmp_path):
    folder = tmp_path / "odd [x] name"
    folder.mkdir()
    for name in ("b.jsonl", "a.jsonl", "c[1].jsonl"):
        (folder / name).write_text("")
    card = load_card(write(folder, source={"kind": "jsonl", "files": ["*.jsonl", "a.jsonl", "c[1].jsonl"]}))
    assert [path.name for path in card.input_files()] == ["a.jsonl", "b.jsonl", "c[1].jsonl"]
    card = load_card(write(folder, source={"kind": "jsonl", "files": ["a.jsonl", "z*.jsonl"]}))
    with pytest.raises(UserError, match=r"source\.files has 'z\*\.jsonl', which matches no file"):
        card.input_files()


def found(card):
    return [str(path.relative_to(card.path.parent)) for path in card.input_files()]


def test_each_real_file_is_read_once_whatever_links_lead_to_it(tmp_path):
    """Folders with links to themselves would be without end, and files outside are reached by links alone."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "far.txt").write_text("")
    home = tmp_path / "home"
    for folder in ("mine/a/b", "mine/z", "mine/.hidden"):
        (home / folder).mkdir(parents=True)
        (home / folder / "own.txt").write_text("")
    for link, target in (
        *((f"mine/loop{i}", "mine") for i in range(12)),
        ("mine/a/up", "mine/a"),
        ("mine/0", "mine/z"),
        ("mine/1.txt", "mine/z/own.txt"),
        ("mine/out", "../outside"),
        ("mine/none", "nowhere"),
        ("mine/none.txt", "nowhere.txt"),
        ("only.txt", "../outside/far.txt"),
    ):
        (home / link).symlink_to((home / target).resolve())
    os.link(home / "mine/a/b/own.txt", home / "mine/hard.txt")
    (home / "mine/self.txt").symlink_to(home / "mine/self.txt")
    for files, expected in (
        ("mine/**/*.txt", ["mine/a/b/own.txt", "mine/out/far.txt", "mine/z/own.txt"]),
        ("mine/**", ["mine/a/b/own.txt", "mine/out/far.txt", "mine/z/own.txt"]),
        ("**/a/**/*.txt", ["mine/a/b/own.txt"]),
        (["mine/*.txt", "mine/0/*.txt"], ["mine/0/own.txt", "mine/hard.txt"]),
        (["only.txt", "mine/out/*"], ["mine/out/far.txt"]),
        ("only.txt", ["only.txt"]),
    ):
        assert found(load_card(write(home, source={"kind": "text", "files": files}))) == expected


def test_a_home_folder_is_found_and_a_folder_is_told_how_to_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jsonl").write_text("")
    (tmp_path / "cards").mkdir()
    for files in ("~/mine/*.jsonl", ["~/mine/a.jsonl"], "~/**/*.jsonl"):
        card = load_card(write(tmp_path / "cards", source={"kind": "jsonl", "files": files}))
        assert card.input_files() == [tmp_path / "mine" / "a.jsonl"]
    for files, kind, example in (("mine", "text", "mine/**/*.txt"), ("~/mine/", "jsonl", "mine/**/*.jsonl")):
        card = load_card(write(tmp_path, source={"kind": kind, "files": files}))
        with pytest.raises(UserError, match=f"which is a folder; expected files, such as .*{re.escape(example)}"):
            card.input_files()


def test_the_shipped_cards_load():
    for path in DATA.glob("*.yaml"):
        assert load_card(path).description
    assert [path.name for path in load_card(DATA / "austen.yaml").input_files()] == ["austen.jsonl.xz"]
