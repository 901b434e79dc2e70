"""Evaluation: a model's loss by tokens and by bytes is the same in the run, here and in transformers; its answers."""

import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mup_lightning.cli.main import main
from mup_lightning.data.card import load_card
from mup_lightning.data.prepare import prepare
from mup_lightning.data.shards import TokenStore
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.training.evaluate import answer, evaluate
from mup_lightning.training.finished import open_model
from mup_lightning.training.train import train
from tests.conftest import tiny_config
from tests.families import LLAMA, model

WORDS = ["a naïve", "café", "— 東京", "🙂", "the cat", "sat on", "one very long day", "\n\n", "it's 2x"]
FOLDS = {"recipe.base_width": 8, "recipe.base_depth": 1, "recipe.input_multiplier": 3.0, "recipe.init_std": 0.2}
RUNS = {"gpt2": {}, "llama": model(LLAMA | {"heads_per_kv": 1})}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a corpus in GPT-2's vocabulary, whose characters take one to four bytes and several tokens."""
    folder, chance = tmp_path_factory.mktemp("evaluate"), random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=25)) for _ in range(40)]
    (folder / "docs.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (folder / "card.yaml").write_text(
        "name: signs\nsource: {kind: jsonl, files: docs.jsonl}\ntext_column: text\n"
        "validation: {fraction: 0.3, seed: 0}\nlicence: none\ndescription: for tests\n"
    )
    prepare(load_card(folder / "card.yaml"), folder / "corpus", tokenizer="gpt2", progress=False)
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    """Name -> result of a run of GPT-2 and of one of Llama, whose multipliers all differ from 1; both are exported."""
    found = {}
    for name, changes in RUNS.items():
        own = {
            "data.tokenizer": "gpt2",
            "run.name": name,
            "trainer.max_steps": 6,
            "data.val_tokens": None,
            **FOLDS,
            **changes,
        }
        found[name] = train(tiny_config(folder / "corpus", folder / "runs", **own), progress=False)
        assert main(["export", str(folder / "runs" / name), "--out", str(folder / f"hf-{name}")]) == 0
    return found


def scored(folder, context=16):
    """The validation tokens, those of them that windows of this length predict, and the bytes of the latter's text."""
    store = TokenStore.open(folder / "corpus", "val")
    tokens = store.windows([0], len(store))[0]
    targets = tokens[1 : (len(tokens) - 1) // context * context + 1]
    encoding = Tokenizer("gpt2").engine
    text = encoding.decode_bytes([token for token in targets.tolist() if token != 50256])
    assert 50256 in targets
    assert len(text) > len(text.decode(errors="ignore")) + 100
    return tokens, targets, text


@pytest.mark.parametrize("name", RUNS)
def test_a_run_and_its_export_have_the_same_bits_per_byte(folder, runs, name, capsys):
    _, targets, text = scored(folder)
    result = runs[name]
    wanted = result.validation_loss * len(targets) / math.log(2) / len(text)
    assert result.bits_per_byte == pytest.approx(wanted, rel=1e-12)
    capsys.readouterr()
    assert main(["evaluate", str(folder / "runs" / name), "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    assert (here["step"], here["tokens"], here["bytes"]) == (6, len(targets), len(text))
    assert here["bits_per_byte"] == pytest.approx(result.bits_per_byte, rel=1e-6)
    assert here["perplexity"] == pytest.approx(math.exp(result.validation_loss), rel=1e-5)
    there = evaluate(folder / f"hf-{name}", str(folder / "corpus"), batch=3)
    assert there["step"] is None
    for key in ("validation_loss", "bits_per_byte"):
        assert there[key] == pytest.approx(here[key], rel=1e-6)
    shorter = evaluate(folder / f"hf-{name}", str(folder / "corpus"), context=5, val_tokens=50)
    assert (shorter["tokens"], shorter["bytes"]) == (50, len(Tokenizer("gpt2").engine.decode_bytes(targets[:50])))


ALONE = """
import json, math, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

for folder in sys.argv[2:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = json.load(open(sys.argv[1]))
    ids = torch.tensor([i for text in texts for i in [*tokenizer(text).input_ids, tokenizer.eos_token_id]])
    count = (len(ids) - 1) // 16 * 16
    windows = ids[: count + 1].unfold(0, 17, 16)
    unread = (tokenizer.decode(ids[:1]) + tokenizer.decode(ids[count + 1 :], skip_special_tokens=True)).encode()
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits.flatten(0, 1)
    nats = torch.nn.functional.cross_entropy(logits.double(), windows[:, 1:].flatten(), reduction="sum")
    print(float(nats) / math.log(2) / (sum(len(text.encode()) for text in texts) - len(unread)))
assert not [name for name in sys.modules if name.startswith("mup_lightning")]
"""


def test_transformers_alone_scores_the_same_bits_per_byte_from_the_text(folder, runs):
    """In a process that has nothing but the exported folders and the documents."""
    tokens, _, _ = scored(folder)
    whole = Tokenizer("gpt2").decode(tokens.tolist())
    written = [json.loads(line)["text"] for line in (folder / "docs.jsonl").read_text().splitlines()]
    texts = sorted((text for text in written if text in whole), key=whole.index)
    assert whole == "".join(f"{text}<|endoftext|>" for text in texts)
    (folder / "texts.json").write_text(json.dumps(texts))
    command = [sys.executable, "-I", "-c", ALONE, "texts.json", *(f"hf-{name}" for name in RUNS)]
    out = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert [float(line) for line in out.split()] == pytest.approx([r.bits_per_byte for r in runs.values()], rel=1e-6)


def question(chance, signs=WORDS):
    words = [" ".join(chance.choices(signs, k=k)) for k in (chance.randrange(1, 12), 1, 2, 2)]
    return {"ctx": words[0], "endings": words[1:], "label": str(chance.randrange(3)), "ind": 4}


def write(folder, rows):
    file = folder / "task.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return file


def log_probability(model, tokenizer, query, choice):
    """Of a choice's tokens, one choice at a time, from all logits."""
    before = tokenizer.encode_batch([query.rstrip()])[0].tolist()
    own = tokenizer.encode_batch([f"{query} {choice}"])[0].tolist()[len(before) :]
    ids = ((before or [tokenizer.eot]) + own)[-17:]
    with torch.no_grad():
        logs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[-len(own) :]
    return float(logs[range(len(own)), own].sum())


@pytest.mark.parametrize("name", RUNS)
def test_answers_are_those_of_one_choice_at_a_time(folder, runs, name, tmp_path):
    """Contexts of 17 tokens and more lose their beginning; one is empty, one ends in a blank."""
    chance = random.Random(1)
    rows = [question(chance) for _ in range(60)]
    rows += [{"query": query, "choices": ["a b", "b", "東京"], "gold": 1, "ctx_a": ""} for query in ("", "the day  ")]
    file, exported = write(tmp_path, [*rows, ""]), folder / f"hf-{name}"
    subject, tokenizer = open_model(exported), Tokenizer("gpt2")
    hits = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for row in rows:
        query, choices, right = [value for key, value in row.items() if key not in ("ind", "ctx_a")]
        sums = np.array([log_probability(subject.model, tokenizer, query, choice) for choice in choices])
        hits["acc"].append(np.argmax(sums) == int(right))
        hits["acc_norm"].append(np.argmax(sums / [len(choice) for choice in choices]) == int(right))
        hits["acc_bytes"].append(np.argmax(sums / [len(choice.encode()) for choice in choices]) == int(right))
    assert len({sum(right) for right in hits.values()}) > 1
    found = answer(exported, file, batch=7)
    assert (found["questions"], found["step"]) == (62, None)
    for measure, right in hits.items():
        share = sum(right) / 62
        assert found[measure] == pytest.approx(share)
        assert found[f"{measure}_stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 61))
    assert answer(folder / "runs" / name, file, batch=1)["acc_norm"] == found["acc_norm"]
    assert answer(exported, write(tmp_path, rows[:1]))["acc_stderr"] is None


GOOD = {"ctx": "the cat", "endings": ["sat", "ran"], "label": 0}
BAD = {
    "no JSON": ('{"ctx": ', "is not JSON in UTF-8"),
    "half a character": (r'{"ctx": "\ud800", "endings": ["a", "b"], "label": 0}', "is not JSON in UTF-8"),
    "no question": ([1, 2], "is [1, 2]; expected the keys ctx, endings, label or the keys query, choices, gold"),
    "other keys": ({"text": "a"}, 'is {"text": "a"}; expected the keys'),
    "no text": (GOOD | {"ctx": 3}, "ctx is 3; expected ctx, a text"),
    "one choice": (GOOD | {"endings": ["sat"]}, "endings is ['sat']; expected"),
    "an empty choice": (GOOD | {"endings": ["sat", ""]}, "endings is ['sat', '']; expected"),
    "no answer": (GOOD | {"label": ""}, "label is ; expected"),
    "an answer that is not there": (GOOD | {"label": 2}, "label is 2; expected"),
    "a long choice": (GOOD | {"endings": ["sat", "sat " * 20]}, "tokens; expected at least one, and at most the"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_line_is_refused_with_its_place(folder, runs, tmp_path, fault, capsys):
    row, message = BAD[fault]
    file = write(tmp_path, [GOOD, "", row, GOOD])
    assert main(["evaluate", str(folder / "hf-gpt2"), "--task", str(file)]) == 1
    assert re.match(rf"error: {re.escape(str(file))}, line 3: .*{re.escape(message)}", capsys.readouterr().err)


def test_what_cannot_be_evaluated_is_refused(tiny, folder, runs, corpus, tmp_path, capsys):
    nul = write(tmp_path, [GOOD | {"ctx": "\0"}])
    by_bytes = train(tiny(), progress=False).checkpoint
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    exported = str(folder / "hf-gpt2")
    for words, message in (
        ([exported], "does not say what it was trained on; name a prepared corpus: --data FOLDER"),
        ([exported, "--data", str(corpus)], "has another vocabulary, bytes (256 tokens), than the model in"),
        (
            [exported, "--data", str(folder / "corpus"), "--context", "17"],
            "--context is 17; expected at most 16, that of",
        ),
        ([exported, "--data", str(corpus), "--task", str(nul)], "takes the place of a corpus; leave --data"),
        ([exported, "--task", str(empty)], "empty.jsonl holds no questions; expected one a line"),
        ([exported, "--task", str(tmp_path / "none.jsonl")], "none.jsonl cannot be read: No such file"),
        ([by_bytes, "--task", str(nul)], "line 1: the vocabulary cannot hold it: NUL character"),
        ([str(tmp_path)], "is not a complete checkpoint"),
    ):
        assert main(["evaluate", *words]) == 1
        assert message in capsys.readouterr().err
    assert Path(by_bytes).is_dir()
