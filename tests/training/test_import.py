"""Training starts from the weights of a Hugging Face model, and computes the same function, under any multipliers."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mup_lightning.cli.main import VERBS, main, parse
from mup_lightning.config.imported import check, settings
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.data.tokenizer_json import tokenizer_json
from mup_lightning.errors import UserError
from mup_lightning.studies.sweep.grid import Checker
from mup_lightning.training import hugging_face
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.train import train

GPT2 = {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "initializer_range": 0.3}
LLAMA = {
    **{"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "rope_theta": 500.0},
    **{"num_key_value_heads": 2, "intermediate_size": 72, "max_position_embeddings": 64, "initializer_range": 0.3},
}
MODELS = {
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, GPT2),
    "gpt2-untied": (transformers.GPT2LMHeadModel, transformers.GPT2Config, GPT2 | {"tie_word_embeddings": False}),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, LLAMA),
    "llama-tied": (
        *(transformers.LlamaForCausalLM, transformers.LlamaConfig),
        LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3},
    ),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, LLAMA | {"head_dim": 16, "rms_norm_eps": 1e-3}),
    "mixtral": (
        *(transformers.MixtralForCausalLM, transformers.MixtralConfig),
        LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 3, "rope_parameters": {"rope_theta": 500.0}},
    ),
}
RECIPES = {
    "SP": {"recipe.parametrization": "sp"},
    "recipe": {"recipe.base_width": 8, "recipe.base_depth": 1, "recipe.input_multiplier": 3.0},
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    """A model that transformers has drawn, every bias and gain shaken, saved as it saves any."""
    torch.manual_seed(0)
    model, config, values = MODELS[request.param]
    path, model = tmp_path_factory.mktemp(request.param), model(config(**values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return path


def like(folder, **changes):
    """What to change in a tiny configuration so that it starts from the folder."""
    return {f"model.{key}": value for key, value in settings(folder).items()} | {"model.context": 16} | changes


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_function_is_the_same_and_trains_on(tiny, folder, recipe, tmp_path):
    config = tiny(**like(folder, **RECIPES[recipe]), **{"trainer.max_steps": 2})
    model, theirs = GPT2Module(config).model, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    hugging_face.load(model, folder)
    if recipe == "recipe":
        assert 1.0 not in vars(model.multipliers).values()
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, wanted = model.eval()(tokens), theirs(tokens).logits
        loss = float(model.loss(torch.cat([tokens, tokens[:, :1]], 1)))
    assert wanted.std() > 1
    torch.testing.assert_close(ours, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)

    path = train(config, progress=False).checkpoint
    assert main(["export", path, "--out", str(tmp_path / "again")]) == 0
    again = GPT2Module(tiny(**like(tmp_path / "again", **RECIPES["SP"]))).model
    hugging_face.load(again, tmp_path / "again")
    trained = again.loss(torch.cat([tokens, tokens[:, :1]], 1)).item()
    assert abs(trained - loss) > 1e-3
    second = train(tiny(**like(tmp_path / "again", **{"run.name": "second", "trainer.max_steps": 1})), progress=False)
    assert second.finished


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_tied_output_matrix_may_become_one_of_its_own(tiny, folder, recipe):
    model = GPT2Module(tiny(**like(folder, **RECIPES[recipe], **{"model.tied": False}))).model.eval()
    hugging_face.load(model, folder)
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits
        torch.testing.assert_close(model(tokens), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


def test_a_vocabulary_of_the_same_size_is_not_the_same(tiny, folder, tmp_path):
    """The corpus is in bytes, the folder's tokenizer has two of them swapped."""
    path = shutil.copytree(folder, tmp_path / "copy")
    content, _ = tokenizer_json(Tokenizer("bytes"))
    (path / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    (path / "tokenizer.json").write_text(content.replace('"a":97,"b":98', '"b":97,"a":98'))
    with pytest.raises(UserError, match=r"copy has a tokenizer that makes other tokens of text than bytes, the corpus"):
        train(tiny(**like(path)), progress=False)
    (path / "tokenizer.json").write_text(content)
    assert train(tiny(**like(path), **{"trainer.max_steps": 1}), progress=False).finished


def test_the_word_takes_the_shape_over(folder, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    words = ["model=mixtral", f"weights={folder}", "--data.tokenizer", "bytes", "--model.context", "16"]
    (config,) = parse(VERBS["train"], words)
    assert (config.model.width, config.model.depth, config.model.heads) == (32, 2, 4)
    assert config.model.weights == str(folder)
    check(config.model)


def test_a_resumed_run_needs_the_folder_no_more(tiny, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    changes = like(copy, **{"trainer.max_steps": 4})
    whole = train(tiny(**changes, **{"run.name": "whole"}), progress=False)
    shutil.rmtree(copy)
    tiny_again = tiny(**changes | {"trainer.max_steps": 6, "run.name": "whole", "run.resume": "last"})
    assert train(tiny_again, progress=False).first_step == whole.steps


def test_a_study_of_other_sizes_is_refused_before_anything_runs(tiny, folder):
    Checker().check(tiny(**like(folder)))
    with pytest.raises(UserError, match=r"model\.depth is 3, but 2 in"):
        Checker().check(tiny(**like(folder, **{"model.depth": 3})))


FAULTS = {
    "no config.json": (lambda path: (path / "config.json").unlink(), {}, "has no config.json; expected the folder"),
    "another architecture": ({"model_type": "mamba"}, {}, "model_type 'mamba'; expected gpt2, llama, qwen3, mixtral"),
    "an unknown activation": (
        {"activation_function": "gelu", "hidden_act": "gelu"},
        {},
        "activation gelu is not among",
    ),
    "scaled frequencies": ({"rope_scaling": {"type": "linear"}, "add_cross_attention": True}, {}, "models here have"),
    "a window of attention": (
        {"sliding_window": 8, "use_sliding_window": True, "add_cross_attention": True, "pretraining_tp": 2},
        *({}, "models here have"),
    ),
    "another shape": ({}, {"model.depth": 3}, "model.depth is 3, but 2 in"),
    "a longer context": ({}, {"model.context": 128}, "model.context is 128, but"),
    "no such switch": ({}, {"model.parallel": True}, "model.parallel is true, but false in"),
    "other experts": ({}, {"model.experts": 6, "model.bias": False}, "model.experts is 6, but "),
    "frequencies as text": ({"rope_parameters": "all"}, {}, "config.json: a key is missing or has another type: "),
    "a number as text": ({"vocab_size": "all"}, {}, "config.json: model.vocab_size is 'all'; expected a whole number"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), {}, "has no .safetensors"),
    "half the weights": (
        lambda path: (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:5000]),
        *({}, "model.safetensors cannot be read"),
    ),
    "another model's weights": ({"vocab_size": 128}, {"model.vocab_size": None}, "model.vocab_size is 256, but 128"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_taken_over_is_refused(tiny, folder, tmp_path, fault, capsys):
    path = shutil.copytree(folder, tmp_path / "copy")
    change, own, message = FAULTS[fault]
    config = like(path) | own
    if callable(change):
        change(path)
    else:
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=re.escape(message)):
        train(tiny(**config), progress=False)
    assert not (tmp_path / "runs").exists()


def test_weights_of_another_model_are_refused_by_name(tiny, folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(path / "model.safetensors")
    name = next(name for name in tensors if name.endswith(("c_fc.weight", "up_proj.weight", "w3.weight")))
    for change, message in (
        ({name: tensors[name][:5]}, f"{name} in "),
        ({name: None}, f"has no tensor {name}"),
        ({"model.layers.0.lora": torch.ones(2)}, "without a place in"),
    ):
        kept = {key: value.contiguous() for key, value in (tensors | change).items() if value is not None}
        save_file(kept, path / "model.safetensors")
        with pytest.raises(UserError, match=re.escape(message)):
            hugging_face.load(GPT2Module(tiny(**like(path))).model, path)
