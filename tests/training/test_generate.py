"""Text from a model: which tokens are drawn, what is kept of those before, and how it reaches the terminal."""

import io
import itertools
import re
import sys
from collections import Counter

import pytest
import torch

from mup_lightning.cli.main import main
from mup_lightning.config.schema import Config
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import build
from mup_lightning.training.generate import choose, generate, pieces
from mup_lightning.training.train import train
from tests import families
from tests.data.test_tokenizer import byte_fallback
from tests.model.models import shake

CONTEXT = 16
PROMPT = [116, 104, 101]


@pytest.fixture(scope="module", params=families.FAMILIES)
def model(request):
    shape = {"width": 32, "depth": 2, "heads": 4, "context": CONTEXT} | families.FAMILIES[request.param]
    config = Config.from_plain({"model": shape, "recipe": {"init_std": 0.2}, "data": {"tokenizer": "bytes"}})
    made = build(config.model, config.derive(), seed=0).eval()
    shake(made)
    return made


def some(model, number, **how):
    return list(itertools.islice(generate(model, PROMPT, **{"eot": None} | how), number))


@torch.no_grad()
def test_greedy_is_the_likeliest_after_all_that_fits(model):
    """Against a whole forward pass for every token; when the context is full, its older half is forgotten."""
    seen, wanted = list(PROMPT), []
    while len(wanted) < 5 * CONTEXT:
        if len(seen) > CONTEXT:
            seen = seen[-CONTEXT // 2 :]
        wanted.append(int(model(torch.tensor([seen]))[0, -1].argmax()))
        seen.append(wanted[-1])
    assert some(model, 5 * CONTEXT) == wanted
    assert len(set(wanted)) > 5
    ended = itertools.takewhile(lambda token: token != wanted[7], wanted)
    assert list(generate(model, PROMPT, eot=wanted[7])) == list(ended)


def test_a_seed_is_a_text(model):
    drawn = [some(model, 40, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert some(model, 40, temperature=1.0, top_k=1) == some(model, 40) == some(model, 40, temperature=1e-300)
    assert some(model, 40, temperature=1.0, top_p=1e-9) == some(model, 40)


LOGITS = torch.tensor([0.5, 0.1, 0.1, 0.3]).log().double()
DRAWS = {
    "all": ({}, [0.5, 0.1, 0.1, 0.3]),
    "hot": ({"temperature": 1e9}, [0.25, 0.25, 0.25, 0.25]),
    "cooler": ({"temperature": 0.5}, [25 / 36, 1 / 36, 1 / 36, 9 / 36]),
    "greedy": ({"temperature": 0.0}, [1, 0, 0, 0]),
    "the likeliest two": ({"top_k": 2}, [0.625, 0, 0, 0.375]),
    "more than there are": ({"top_k": 9}, [0.5, 0.1, 0.1, 0.3]),
    "half the probability": ({"top_p": 0.5}, [1, 0, 0, 0]),
    "a little more": ({"top_p": 0.51}, [0.625, 0, 0, 0.375]),
    "of two, the probability of both": ({"top_k": 2, "top_p": 0.63}, [0.625, 0, 0, 0.375]),
    "of two, the probability of one": ({"top_k": 2, "top_p": 0.62}, [1, 0, 0, 0]),
}


@pytest.mark.parametrize("case", DRAWS)
def test_draws_have_their_probabilities(case):
    how, wanted = DRAWS[case]
    arguments = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | how
    chance = torch.Generator().manual_seed(0)
    counts = Counter(choose(LOGITS, **arguments, chance=chance) for _ in range(4000))
    for token, probability in enumerate(wanted):
        assert abs(counts[token] / 4000 - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5 + 1e-12


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_text_comes_in_whole_characters(name):
    tokenizer = Tokenizer(name)
    text = "naïve 東京 🙂👩\u200d💻 नमस्ते \ufffd end"
    ids = tokenizer.encode_batch([text])[0].tolist()
    shown = list(pieces(ids, tokenizer))
    assert "".join(shown) == text
    assert len(shown) > 12
    assert all(piece in text for piece in shown)
    cut = ids[: ids.index(tokenizer.encode_batch(["🙂"])[0].tolist()[0]) + 1]  # in the middle of a character
    assert "".join(pieces(cut, tokenizer)) == tokenizer.decode(cut)
    broken = [0x61, 0xFF, 0xE6, 0x9D, 0x62, 0xF0] if name == "bytes" else [97, 94, 108, 12520, 220, 47728]
    assert "".join(pieces(broken, tokenizer)) == tokenizer.decode(broken)


def test_the_first_word_of_a_piece_keeps_its_blank(tmp_path):
    """Llama's tokenizer drops the blank that begins a text, and all of its tokens begin with one."""
    tokenizer = Tokenizer(byte_fallback(tmp_path / "llama.json"))
    ids = tokenizer.encode("a b  é c").tolist()
    assert "".join(pieces(ids, tokenizer)) == tokenizer.decode(ids) == "a b  é c"


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    from tests.conftest import tiny_config

    config = tiny_config(corpus, tmp_path_factory.mktemp("runs"), **{"trainer.max_steps": 30, "recipe.lr": 2**-4})
    return train(config, progress=False).checkpoint


def typed(capsys, *words):
    assert main(["generate", *map(str, words)]) == 0
    return capsys.readouterr()


def test_a_run_a_checkpoint_and_an_export_say_the_same(trained, tmp_path, capsys, monkeypatch):
    run = re.sub("/checkpoints/.*", "", trained)
    said = [typed(capsys, folder, "--prompt", "the c", "--tokens", 40, "--seed", 3) for folder in (run, trained)]
    assert main(["export", trained, "--out", str(tmp_path / "hf")]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the c")))
    said.append(typed(capsys, tmp_path / "hf", "--prompt", "-", "--tokens", 40, "--seed", 3))
    assert len({out for out, _ in said}) == 1
    assert said[0].out.startswith("the c")
    assert len(said[0].out) == len("the c") + 40 + 1
    assert all(re.fullmatch(r"40 tokens; [\d,]+ tokens/s\n", err) for _, err in said)


def test_it_stops_at_the_end_of_the_text(trained, capsys, monkeypatch):
    monkeypatch.setattr("mup_lightning.training.generate.choose", lambda *_: next(drawn))
    drawn = iter([0x61, 0xC3, 0xA9, 0xC3, 0])
    found = typed(capsys, trained, "--prompt", "x", "--tokens", 9)
    assert found.out == "xaé\ufffd\n"
    assert found.err.startswith("4 tokens, then the end of the text; ")


REFUSED = [
    (["--prompt", ""], "the prompt is empty; expected text"),
    (["--prompt", "x" * (CONTEXT + 1)], "the prompt has 17 tokens; expected 1 to the model's context, 16"),
    (["--prompt", "a\0b"], "the prompt has a NUL character; expected text"),
    (["--prompt", "a\udcff"], "the prompt is not UTF-8 text"),
    (["--prompt", "a", "--temperature", "-1"], "--temperature is -1; expected a finite number of at least 0"),
    (["--prompt", "a", "--top-p", "0"], "--top-p is 0; expected a number above 0 and up to 1"),
    (["--prompt", "a", "--top-p", "1.1"], "--top-p is 1.1; expected a number above 0 and up to 1"),
    (["--prompt", "a", "--top-k", "0"], "--top-k is 0; expected a whole number of at least 1"),
    (["--prompt", "a", "--tokens", "0"], "--tokens is 0; expected a whole number of at least 1"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_bad_input_is_one_line(trained, words, message, capsys):
    assert main(["generate", trained, *words]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {message}")
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_folders_that_are_no_model_are_refused(trained, tmp_path, capsys):
    assert main(["generate", str(tmp_path), "--prompt", "a"]) == 1
    assert "is not a complete checkpoint" in capsys.readouterr().err
    assert main(["export", trained, "--out", str(tmp_path / "hf")]) == 0
    (tmp_path / "hf" / "tokenizer.json").unlink()
    assert main(["generate", str(tmp_path / "hf"), "--prompt", "a"]) == 1
    assert "hf/tokenizer.json, which is no file; expected gpt2, bytes" in capsys.readouterr().err
    assert main(["generate", trained]) == 2
    assert "--prompt is missing" in capsys.readouterr().err


def test_ids_and_logits_that_cannot_be_are_refused(model):
    for prompt, message in (([], "has 0 tokens"), ([256], "has token 256; .* ends at 255"), ([-1], "has token -1")):
        with pytest.raises(UserError, match=message):
            generate(model, prompt, eot=None)
    with pytest.raises(UserError, match="logits are not finite"):
        choose(torch.tensor([0.0, float("nan")]), 1.0, None, 1.0, torch.Generator())
