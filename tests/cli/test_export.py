"""A trained model leaves as a plain Hugging Face GPT-2, Llama, Qwen3 or Mixtral."""

import json
import os
import pkgutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mup_lightning.cli.main import main
from mup_lightning.config.schema import Config, ModelConfig
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError
from mup_lightning.files import file_sha256
from mup_lightning.training import hugging_face
from mup_lightning.training.checkpoint import find
from mup_lightning.training.finished import load_model
from mup_lightning.training.tensors import Shards
from mup_lightning.training.train import train
from tests.conftest import tiny_config
from tests.data.test_tokenizer import byte_fallback
from tests.families import LLAMA, MIXTRAL, model

FOLDS = {"recipe.base_width": 8, "recipe.base_depth": 1, "recipe.input_multiplier": 3.0, "recipe.init_std": 0.2}


def trained(tiny, **changes):
    """A run whose multipliers all differ from 1, and from each other; weights large enough for every term to show."""
    config = tiny(**{"trainer.max_steps": 6, "recipe.lr": 2**-5, **FOLDS, **changes})
    return train(config, progress=False).checkpoint


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    """That of a run of the default blocks."""
    return trained(partial(tiny_config, corpus, tmp_path_factory.mktemp("export") / "runs"))


@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"model.document_mask": True}, {"model.tied": False, "recipe.parametrization": "sp"}),
        *(model(LLAMA), model(LLAMA | {"qk_norm": True, "qk_gain": True}), model(MIXTRAL)),
    ],
)
def test_hugging_face_computes_the_same_function(tiny, checkpoint, tmp_path, changes, capsys):
    """Of a trained model; tests/model/test_hugging_face.py has every switch."""
    path = trained(tiny, **changes) if changes else checkpoint
    assert main(["export", path, "--out", str(tmp_path / "hf"), "--verify"]) == 0
    assert "the same in transformers: logits of 16 tokens at most " in capsys.readouterr().out
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    rotary = "Mixtral" if "model.experts" in changes else "Qwen3" if "model.qk_norm" in changes else "Llama"
    assert type(theirs).__name__ == (f"{rotary}ForCausalLM" if "model.position" in changes else "GPT2LMHeadModel")
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    found = find(Path(path))
    ours = load_model(found, Config.from_plain(found.config))
    tokens = torch.randint(1, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, hers = ours(tokens), theirs.eval()(tokens).logits
    assert mine.std() > 0.1
    torch.testing.assert_close(hers, mine, atol=2e-5, rtol=0)


def test_the_folder_is_whole(checkpoint, tmp_path):
    """In a Python that cannot import this package, without a network."""
    exported = tmp_path / "hf"
    assert main(["export", checkpoint, "--out", str(exported)]) == 0
    program = """
import sys
sys.modules["mup_lightning"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert type(tokenizer).__module__.startswith("transformers.")
batch = tokenizer(["né", "the cat"], padding=True, return_tensors="pt")
assert batch["input_ids"].tolist() == [[110, 195, 169, 0, 0, 0, 0], list(b"the cat")], batch
assert tokenizer.model_max_length == model.config.max_position_embeddings == 16
config = model.generation_config
assert config.bos_token_id == config.eos_token_id == config.pad_token_id == tokenizer.pad_token_id == 0
made = model.generate(**tokenizer("the", return_tensors="pt"), max_new_tokens=5, do_sample=False)
assert tokenizer.decode(made[0]).startswith("the")
"""
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "HF_HOME": str(exported / "none")}
    subprocess.run([sys.executable, "-c", program, exported], env=os.environ | offline, check=True)
    sums = (exported / "SHA256SUMS").read_text().splitlines()
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert {line.split("  ")[1] for line in sums} == names
    assert all(file_sha256(exported / line.split("  ")[1]) == line.split("  ")[0] for line in sums)


def test_a_tokenizer_of_ones_own_goes_along(tiny, corpus, tmp_path):
    file = byte_fallback(tmp_path / "llama.json")
    words = ["data", "prepare", str(corpus.parent / "card.yaml"), "--tokenizer", str(file), "--quiet"]
    assert main([*words, "--out", str(tmp_path / "own")]) == 0
    path = trained(tiny, **{"data.path": str(tmp_path / "own"), "data.tokenizer": "corpus"}, **model(LLAMA))
    assert main(["export", path, "--out", str(tmp_path / "hf"), "--verify"]) == 0
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == file.read_bytes()
    config = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert config["eos_token_id"] == Tokenizer(file).eot == 2
    assert main(["generate", str(tmp_path / "hf"), "--prompt", "the", "--tokens", "3"]) == 0
    on = [f"weights={tmp_path / 'hf'}", f"data={tmp_path / 'own'}", "tokenizer=corpus", f"--run.root={tmp_path / 'on'}"]
    assert main(["train", *on, "batch=2", "steps=2", "param=sp"]) == 0


def replaced(file, old, new):
    return lambda found: found | {file: found[file].replace(old, new)}


@pytest.mark.parametrize(
    ("spoilt", "spoil", "message"),
    [
        (
            "hugging_face.weights",
            lambda found: found | {"transformer.ln_f.bias": found["transformer.ln_f.bias"] + 1e-3},
            "logits up to",
        ),
        (
            "hugging_face.descriptions",
            replaced("generation_config.json", ": 0", ": 1"),
            "a text ends with token 0, but with {1} there",
        ),
        (
            "hugging_face.descriptions",
            replaced("tokenizer.json", '"a":97,"b":98', '"b":97,"a":98'),
            "has the tokens [73, 116",
        ),
        ("export.generate", lambda _: iter([1, 2, 3]), "greedily generated text differs from the token 1 on"),
    ],
)
def test_what_transformers_reads_otherwise_is_not_exported(
    checkpoint, tmp_path, monkeypatch, refused, spoilt, spoil, message
):
    name = f"mup_lightning.training.{spoilt}"
    right = pkgutil.resolve_name(name)
    monkeypatch.setattr(name, lambda *arguments, **options: spoil(right(*arguments, **options)))
    said = refused(["export", checkpoint, "--out", tmp_path / "hf", "--verify"])
    assert "--verify: transformers makes something else of it, so nothing was written: " in said
    assert message in said
    assert not list(tmp_path.iterdir())


def test_plain_is_every_parameter_as_it_is(checkpoint, tmp_path, capsys):
    plain = ["export", checkpoint, "--out", str(tmp_path / "plain"), "--format", "plain"]
    assert main([*plain, "--verify"]) == 1
    assert "cannot read --format plain; leave one out" in capsys.readouterr().err
    assert main(plain) == 0
    assert "28 tensors" in capsys.readouterr().out
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    shards = Shards(Path(checkpoint))
    assert tensors.keys() == shards.quantities.keys()
    assert all(torch.equal(tensor, shards.read("weight", name)) for name, tensor in tensors.items())
    description = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert description["step"] == 6
    assert description["multipliers"] == {"input": 3.0, "residual": 0.5, "output": 0.25, "attention": 0.5}


@pytest.mark.parametrize(
    ("switches", "key"),
    [
        (LLAMA | {"qk_norm": True, "bias": True}, "bias true, which Hugging Face's Qwen3"),
        ({"qk_norm": True}, "qk_norm true, which Hugging Face's GPT-2"),
        (LLAMA | {"norm": "layernorm"}, "norm layernorm, which Hugging Face's Llama"),
        (MIXTRAL | {"gated": False}, "gated false, which Hugging Face's Mixtral"),
        (MIXTRAL | {"position": "learned"}, "position learned, which Hugging Face's Mixtral"),
        ({"heads_per_kv": 2}, "heads_per_kv 2, which Hugging Face's GPT-2"),
        ({"logit_cap": 30.0}, "logit_cap 30.0, which Hugging Face's GPT-2"),
        ({"parallel": True}, "parallel true, which Hugging Face's GPT-2"),
    ],
)
def test_blocks_that_no_architecture_has_are_refused(switches, key):
    with pytest.raises(UserError, match=f"the model has model.{key} cannot express; export it as it is"):
        hugging_face.architecture(ModelConfig(**switches))


def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    tiny, checkpoint, tmp_path, monkeypatch, refused
):
    path = trained(tiny, **{"model.layer_norm": False, "recipe.init_std": 0.02})
    out = ["--out", tmp_path / "hf"]
    assert "model.layer_norm false, which Hugging Face's GPT-2 cannot express" in refused(["export", path, *out])
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it was not installed
    missing = "needs transformers, which is not installed: pip install 'mup-lightning[export]'"
    assert missing in refused(["export", checkpoint, *out])
    assert not (tmp_path / "hf").exists()
    assert "exists already" in refused(["export", "nowhere", "--out", tmp_path])
    assert "does not exist; expected a folder" in refused(["export", tmp_path / "nowhere", *out])
