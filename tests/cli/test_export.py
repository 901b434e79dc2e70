"""A trained model leaves as a plain Hugging Face GPT-2 or Llama."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from mup_lightning.cli.main import main
from mup_lightning.config.schema import Config
from mup_lightning.training.checkpoint import find
from mup_lightning.training.finished import load_model
from mup_lightning.training.tensors import Shards
from mup_lightning.training.train import train
from tests.families import LLAMA, model

FOLDS = {"recipe.base_width": 8, "recipe.base_depth": 1, "recipe.input_multiplier": 3.0, "recipe.init_std": 0.2}


def trained(tiny, **changes):
    """A run whose multipliers all differ from 1, and from each other; weights large enough for every term to show."""
    config = tiny(**{"trainer.max_steps": 6, "recipe.lr": 2**-5, **FOLDS, **changes})
    result = train(config, progress=False)
    return result.checkpoint


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.tied": False},
        {"model.bias": False},
        {"model.attention_scale": "1/d"},
        {"model.activation": "relu", "model.mlp_ratio": 2},
        {"model.activation": "silu", "model.kv_heads": 2},  # as many as heads, in a matrix of their own
        model(LLAMA),
        model(LLAMA | {"tied": False, "attention_scale": "1/d"}),
        model(LLAMA | {"heads": 4, "kv_heads": 1, "rope_base": 100.0, "bias": True}),
        model(LLAMA | {"heads_per_kv": 1, "activation": "gelu"}),
    ],
)
def test_hugging_face_computes_the_same_function(tiny, tmp_path, changes):
    from transformers import AutoModelForCausalLM

    path = trained(tiny, **changes)
    assert main(["export", path, "--out", str(tmp_path / "hf")]) == 0
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert type(theirs).__name__ == ("LlamaForCausalLM" if "model.position" in changes else "GPT2LMHeadModel")
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    checkpoint = find(tmp_path / "runs" / "tiny")
    ours = load_model(checkpoint, Config.from_plain(checkpoint.config))
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, hers = ours(tokens), theirs.eval()(tokens).logits
    assert mine.std() > 0.1
    torch.testing.assert_close(hers, mine, atol=2e-5, rtol=0)


def test_plain_is_every_parameter_as_it_is(tiny, tmp_path, capsys):
    path = trained(tiny)
    assert main(["export", path, "--out", str(tmp_path / "plain"), "--format", "plain"]) == 0
    assert "28 tensors" in capsys.readouterr().out
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    shards = Shards(find(tmp_path / "runs" / "tiny").path)
    assert tensors.keys() == shards.quantities.keys()
    assert all(torch.equal(tensor, shards.read("weight", name)) for name, tensor in tensors.items())
    description = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert description["step"] == 6
    assert description["multipliers"] == {"input": 3.0, "residual": 0.5, "output": 0.25, "attention": 0.5}


INEXPRESSIBLE = [
    (model(LLAMA | {"qk_norm": True}), "model.qk_norm true, which Hugging Face's Llama"),
    (model(LLAMA | {"norm": "layernorm"}), "model.norm layernorm, which Hugging Face's Llama"),
    ({"model.heads_per_kv": 2}, "model.heads_per_kv 2, which Hugging Face's GPT-2"),
    ({"model.logit_cap": 30.0}, "model.logit_cap 30.0, which Hugging Face's GPT-2"),
    ({"model.parallel": True}, "model.parallel true, which Hugging Face's GPT-2"),
]


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch, capsys):
    path = trained(tiny, **{"model.layer_norm": False, "recipe.init_std": 0.02})
    assert main(["export", path, "--out", str(tmp_path / "hf")]) == 1
    assert "model.layer_norm false, which Hugging Face's GPT-2 cannot express" in capsys.readouterr().err
    for number, (changes, message) in enumerate(INEXPRESSIBLE):
        path = trained(tiny, **{"run.name": f"other-{number}"}, **changes)
        assert main(["export", path, "--out", str(tmp_path / "hf")]) == 1
        assert f"{message} cannot express; export it as it is" in capsys.readouterr().err
    path = trained(tiny, **{"run.name": "plain"})
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it was not installed
    assert main(["export", path, "--out", str(tmp_path / "hf")]) == 1
    assert "needs transformers, which is not installed: pip install 'mup-lightning[export]'" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_nothing_is_overwritten(tmp_path, capsys):
    assert main(["export", "nowhere", "--out", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")]) == 1
    assert "is not a complete checkpoint" in capsys.readouterr().err
