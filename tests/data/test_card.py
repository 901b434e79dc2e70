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


def write(tmp_path, **changes):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**GOOD, **changes}.items() if v is not ...}))
    return path


def test_a_good_card(tmp_path):
    card = load_card(write(tmp_path))
    assert card.source.files == ["a.jsonl"]  # one file needs no list
    assert (card.text_column, card.on_bad_document, card.sections) == ("text", "skip", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "MIT"}, r"x\.yaml: unknown key licens\. Did you mean licence\?"),
        ({"source": {"kind": "jsonl", "file": "a"}}, r"unknown key source\.file\. Did you mean source\.files\?"),
        ({"source": {"kind": "jsnl", "files": "a"}}, r"source\.kind is 'jsnl'; expected one of .* Did you mean jsonl"),
        ({"source": "a.jsonl"}, r"source is 'a\.jsonl'; expected a mapping"),
        ({"source": {"kind": "jsonl"}}, r"source\.files must list"),
        ({"source": {"kind": "jsonl", "files": [1]}}, r"source\.files is \[1\]; expected a list of texts"),
        ({"source": {"kind": "jsonl", "files": "a", "document": "line"}}, r"only for kind text"),
        ({"source": {"kind": "jsonl", "files": "a", "revision": "b"}}, r"only for kind hub"),
        ({"source": {"kind": "hub", "dataset": "a/b"}}, r"source\.revision must be given"),
        ({"source": {"kind": "hub", "dataset": "a/b", "revision": "c", "files": "d"}}, r"only for local kinds"),
        ({"validation": {"fraction": "5%"}}, r"validation\.fraction is '5%'; expected a number"),
        ({"validation": {"fraction": True}}, r"validation\.fraction is True; expected a number"),
        ({"validation": {"fraction": 1}}, r"validation\.fraction is 1\.0; expected .* below 1"),
        ({"validation": {"fraction": 0.1, "seed": 0.5}}, r"validation\.seed is 0\.5; expected a whole number"),
        ({"validation": {"fraction": 0.1, "seed": True}}, r"validation\.seed is True; expected a whole number"),
        ({"licence": ...}, r"the key licence is missing"),
        ({"name": "a/b"}, r"name is 'a/b'"),
        ({"on_bad_document": "drop"}, r"on_bad_document is 'drop'; expected one of skip, refuse"),
        ({"sections": {}}, r"sections needs pattern, max_characters, or both"),
        ({"sections": {"pattern": "("}}, r"sections\.pattern is no regular expression"),
        ({"sections": {"pattern": "x*"}}, r"matches the empty text"),
        ({"sections": {"max_characters": 0}}, r"sections\.max_characters is 0"),
        ({"path": "elsewhere"}, r"unknown key path"),
    ],
)
def test_a_bad_card_is_refused_by_key(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load_card(write(tmp_path, **changes))
    assert str(tmp_path / "x.yaml") in str(error.value)


def test_a_missing_or_broken_card(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"no card .*y\.yaml.*x\.yaml"):
        load_card(tmp_path / "y.yaml")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"x\.yaml is not valid YAML"):
        load_card(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("")
    with pytest.raises(UserError, match="expected a mapping"):
        load_card(tmp_path / "x.yaml")


def test_files_are_found_beside_the_card_in_one_order(tmp_path):
    folder = tmp_path / "odd [x] name"
    folder.mkdir()
    for name in ("b.jsonl", "a.jsonl", "c[1].jsonl"):
        (folder / name).write_text("")
    card = load_card(write(folder, source={"kind": "jsonl", "files": ["*.jsonl", "a.jsonl", "c[1].jsonl"]}))
    assert [path.name for path in card.input_files()] == ["a.jsonl", "b.jsonl", "c[1].jsonl"]
    card = load_card(write(folder, source={"kind": "jsonl", "files": ["a.jsonl", "z*.jsonl"]}))
    with pytest.raises(UserError, match=r"source\.files has 'z\*\.jsonl', which matches no file"):
        card.input_files()


@pytest.mark.parametrize("path", sorted(DATA.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_cards_load(path):
    card = load_card(path)
    assert card.licence
    assert card.description


def test_the_default_card_is_shipped_with_its_text():
    assert [path.name for path in load_card(DATA / "austen.yaml").input_files()] == ["austen.jsonl.xz"]
