"""The plan against hand calculations, and against the optimizer that training makes."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mup_lightning.cli.main import main
from mup_lightning.model.gpt2 import build
from mup_lightning.plan.plan import plan, screen
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.training.module import GPT2Module
from tests import families
from tests.plan.test_memory import XL, configure

EXAMPLE = [
    *("--model.width", "1024", "--model.depth", "16", "--recipe.optimizer", "adamw", "--recipe.parametrization", "mup"),
    *("--recipe.branch_depth", "2", "--recipe.lr", "0.0078125", "--recipe.weight_decay", "0.1"),
    *("--recipe.eps", "1e-16", "--data.micro_batch", "8"),
]


def test_the_example_by_hand(capsys):
    """r_n = 4, r_L = 4, AdamW, k = 2."""
    assert main(["plan", *EXAMPLE, "--gpus", "1,8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {parameter["name"]: parameter for parameter in found["parameters"]}
    keys = ["name", "shape", "role", "rule", "multiplier", "init_std", "lr", "weight_decay", "eps"]
    assert all(list(parameter) == keys for parameter in found["parameters"])
    qkv, token, bias, final = (
        by_name[name]
        for name in ("blocks.3.attention.qkv.weight", "token.weight", "blocks.0.mlp.up.bias", "final_norm.weight")
    )
    assert (qkv["shape"], qkv["role"], qkv["rule"]) == ([3072, 1024], "hidden", "adamw")
    numbers = ["multiplier", "init_std", "lr", "weight_decay", "eps"]
    assert [qkv[key] for key in numbers] == pytest.approx([1 / 4, 0.02 / 2, 2**-7 / 4, 0.4, 1e-16 / 16], rel=1e-12)
    assert [token[key] for key in numbers] == pytest.approx([1, 0.02, 2**-7, 0.1, 1e-16 / 4], rel=1e-12)
    assert [bias[key] for key in numbers] == pytest.approx([1 / 4, 0, 2**-7, 0.1, 1e-16 / 16], rel=1e-12)
    assert [final[key] for key in numbers] == pytest.approx([1, 0, 2**-7, 0, 1e-16 / 4], rel=1e-12)  # a gain
    assert found["tokens"] == 1221 * 240 * 1024
    assert found["accumulation"] == {"1": 30, "8": None}  # 240 sequences are no multiple of 8 x 8


def test_gpt2_xl_by_hand():
    n, L, V, T = 1600, 48, 50304, 1024
    found = plan(configure(**XL, trainer__spectral_norms_every=0), (1, 8))
    N = V * n + T * n + L * (12 * n * n + 13 * n) + 2 * n
    assert found.parameter_count == N == 1_557_686_400
    assert sum(math.prod(p["shape"]) for p in found.parameters) == N
    assert found.flops.convention_per_token == 6 * (N - T * n) + 12 * L * n * T
    assert found.flops.matmul_per_token == 6 * (12 * L * n * n + V * n) + 7 * n * (T + 1) * L
    # Five iterations on 4 square matrices a block, and on 2 of (n, 4n): 6n³ and 18n³ each.
    assert found.flops.newton_schulz_per_step == 5 * L * (4 * 6 + 2 * 18) * n**3
    assert found.accumulation == {1: 120, 8: 15}
    hidden, rest = 12 * L * n * n, N - 12 * L * n * n
    zero = [m for m in found.memory if m.gpus == 8]
    assert [m.weights for m in zero] == [4 * N, 4 * N, 4 * N, 4 * N / 8]
    assert [m.gradients for m in zero] == [4 * N, 4 * N, 4 * N / 8, 4 * N / 8]
    assert [m.optimizer for m in zero] == [4 * hidden / 8 + 8 * rest] + [(8 * hidden + 12 * rest) / 8] * 3
    bucket = 4 * 2**23
    assert [m.exchange for m in zero] == [4 * N, bucket, bucket, 3 * bucket]
    made = zero[2].step - 4 * hidden / 8  # by Newton-Schulz, of 4 MB and more
    assert 6 * 64e6 > made > 4 * 1600 * 6400
    assert zero[0].step == made
    assert zero[1].step == 0  # by then seven of eight parts of the gradients have gone
    assert zero[3].step == 4 * hidden / 8 + bucket + max(8 * hidden / 8 + made, 16 * hidden / 8)
    tokens = 2 * T  # one chunk of the loss holds them all
    casts, blocks = 2 * L * 12 * n * n, L * tokens * ((4 + 4 + 14 * 2) * n + 2 * 8 + 4 * 25)
    head, loss = tokens * n * (3 * 4 + 2) + 4 * V * n, 6 * tokens * V + 2 * V * n + 2 * V * n
    assert [m.activations for m in zero[:3]] == [casts + blocks + head + loss] * 3
    assert zero[3].activations == casts + blocks + head + loss + 4 * (2 * 12 * n * n + V * n)
    assert zero[2].total == 4 * N + 4 * N / 8 + zero[2].optimizer + zero[2].activations + bucket
    alone = found.memory[0]
    assert (alone.gpus, alone.exchange, alone.step) == (1, 0, made)


LLAMA = {f"model__{key}": value for key, value in families.LLAMA.items()} | {"model__head_size": 16}


@pytest.mark.parametrize("E", [0, 8])
def test_a_llama_or_a_mixtral_by_hand(E):
    """Width 1024, 16 heads, 4 of keys and values: n²(1 + 1/2 + 1 + 3 · 3.5) in a block, no vectors but gains.

    Or eight MLPs in a block, of which a token has two, and a router of eight rows.
    """
    n, L, V, T = 1024, 24, 50304, 1024
    shape = LLAMA | {"model__width": n, "model__depth": L, "model__head_size": 64, "model__heads_per_kv": 4}
    shape |= {"model__tied": False, "recipe__optimizer": "adamw"}
    shape |= {"model__experts": E, "recipe__base_experts": 4} if E else {}
    found = plan(configure(**shape), (8,))
    N, active = (2 * V * n + L * ((2.5 + 10.5 * m) * n * n + E * n + 2 * n) + n for m in ((E, 2) if E else (1, 1)))
    assert (found.parameter_count, found.active_count) == (N, active)
    assert found.flops.convention_per_token == 6 * (active - V * n) + 12 * L * n * T
    assert found.flops.matmul_per_token == 6 * (active - V * n - (2 * L + 1) * n) + 7 * n * (T + 1) * L

    def values(plan, name):
        found = next(p for p in plan.parameters if p["name"] == f"blocks.0.{name}")
        return [*found["shape"], found["lr"], found["init_std"], found["eps"]]

    # Base (256, 4) has one head of keys and values, this one four: m grows as n, so all is as for any hidden matrix.
    assert values(found, "attention.kv.weight") == pytest.approx([512, n, 2**-7 / 4, 0.02 / 2, 1e-16 / 24])
    # A single head of keys and values at every width: σ² ∝ m/n², ε ∝ 1/(m·L).
    shared = plan(configure(**shape | {"model__kv_heads": 1}))
    assert values(shared, "attention.kv.weight") == pytest.approx([128, n, 2**-7 / 4, 0.02 / 4, 1e-16 / 6])
    if E:
        # From base (256, 4, 4): σ² ∝ 1/n² and 1/n, ε of both ∝ 1/E, and AdamW's rates ∝ 1/n.
        assert values(found, "mlp.router.weight") == pytest.approx([E, n, 2**-7 / 4, 0.02 / 4, 1e-16 / 12])
        assert values(found, "mlp.down") == pytest.approx([E * n, 3.5 * n, 2**-7 / 4, 0.02 / 2, 1e-16 / 48])
        words = screen(configure(**shape), found, 80)
        rows = [line.split(maxsplit=3) for line in words.splitlines()]
        assert [row[3] for row in rows if row[:1] == ["hidden"]] == [
            "attention.q, attention.kv, attention.out, mlp.gate_up, mlp.down",
            "mlp.router",
        ]
        assert f"{int(N):,} parameters, {int(active):,} active for a token" in words


CASES = [
    {},
    {"recipe__optimizer": "adamw", "recipe__branch_depth": 1, "recipe__weight_decay": 0.1},
    {"recipe__parametrization": "sp", "recipe__weight_decay": 0.1, "recipe__decay_vectors": False},
    {"model__tied": False, "recipe__aux_lr_factor": 0.3, "recipe__residual_multiplier": 3.0},
    {"model__bias": False, "recipe__gpt2_residual_init": True, "recipe__output_multiplier": 2.0},
    {"model__layer_norm": False, "recipe__input_multiplier": 2.0},
    *(LLAMA | more for more in ({}, {"recipe__optimizer": "adamw", "model__qk_norm": True, "model__qk_gain": True})),
    *({"recipe__optimizer": name, "recipe__eps": 1e-8} for name in FAMILIES),
]


@pytest.mark.parametrize("changes", CASES)
def test_it_says_what_training_does(changes):
    config = configure(**{"model__width": 64, "model__depth": 3, "data__tokenizer": "bytes", **changes})
    found = plan(config)
    module = GPT2Module(config)
    assert [p["name"] for p in found.parameters] == [name for name, _ in module.model.named_parameters()]
    # configure_optimizers scales by the schedule's first factor at once; the peak is "initial_lr".
    groups = module.configure_optimizers()["optimizer"].param_groups
    real = {info.name: group for group in groups for info in group["infos"]}
    for p in (SimpleNamespace(**parameter) for parameter in found.parameters):
        group, weight = real[p.name], module.model.get_parameter(p.name)
        own = {} if p.eps is None else {"eps": p.eps}
        values = {"rule": p.rule, "initial_lr": p.lr, "weight_decay": p.weight_decay} | own
        assert {key: group[key] for key in values} == values
        assert p.shape == tuple(weight.shape)
        # Vectors are constant; σ of thousands of drawn entries is known to a few percent.
        assert p.init_std == pytest.approx(float(weight.detach().std()), rel=0.05, abs=1e-9), p.name
        role, multipliers = p.role, module.model.multipliers
        wanted = {"input": multipliers.input, "output": multipliers.output, "input_bias": 1.0}
        assert p.multiplier == wanted.get(role, multipliers.residual)
    assert [(g["tensors"], g["parameters"]) for g in found.groups] == [
        (len(group["params"]), sum(p.numel() for p in group["params"])) for group in groups
    ]


@pytest.mark.parametrize("switches", [{}, {"model__tied": False}, LLAMA, LLAMA | {"model__kv_heads": 1}])
def test_counted_operations_are_those_that_torch_counts(switches):
    """All products but attention's, which torch counts as if nothing were masked.

    It leaves out the loss's third product, the head's gradient, because it is added in place.
    """
    shape = {"model__width": 32, "model__depth": 3, "model__context": 16, "data__tokenizer": "bytes"}
    config = configure(**shape | switches)
    counted = plan(config).flops.matmul_per_token - 7 * 32 * (16 + 1) * 3
    model = build(config.model, config.derive(), seed=0)
    with FlopCounterMode(display=False) as counter:
        model.loss(torch.randint(256, (2, 17))).backward()
    products = {op: n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op)}
    in_place = 2 * 256 * 32
    assert sum(products.values()) == (counted - in_place) * 2 * 16


def test_groups_show_batch_and_horizon(capsys):
    """16 x the base's tokens in steps of 4 x: averages over a quarter of the share of steps; B^1/2 T^-1/2 is 1/2."""
    time = ["--recipe.time_rule", "sde", "--recipe.base_batch", "61440", "--recipe.base_tokens", "18754560"]
    found = []
    for more in ([], time):
        assert main(["plan", *EXAMPLE, *more, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    plain, timed = found
    assert plain["groups"][0]["averages"] == {"beta1": 0.9, "beta2": 0.95}
    assert plain["groups"][0]["over_time"] == {}
    assert timed["groups"][0]["averages"] == pytest.approx({"beta1": 0.9**0.25, "beta2": 0.95**0.25})
    assert timed["groups"][0]["over_time"] == pytest.approx({"lr": 0.5, "weight_decay": 0.5, "eps": 0.5})
    for before, after in zip(plain["groups"], timed["groups"], strict=True):
        assert [after[key] / before[key] for key in ("lr", "eps")] == pytest.approx([0.5, 0.5])
    main(["plan", *EXAMPLE, *time])
    text = capsys.readouterr().out
    assert "beta1 0.974004, beta2 0.987259" in text
    assert "note: time rule sde, batch 4 x and tokens 16 x the base's: lr x 0.5, weight decay x 0.5, eps x 0.5" in text


def test_the_screen(capsys):
    options = ["--model.width", "1600", "--model.depth", "48", "--data.micro_batch", "2"]
    assert main(["plan", *options, "--gpus", "8,64", "--gpu-memory", "20"]) == 0
    text = capsys.readouterr().out
    for part in (
        "1,557,686,400 parameters",
        "Newton-Schulz",
        "data.batch_size 240 is no multiple of 2 x GPUs",
        "the output matrix is the token embedding",
    ):
        assert part in text
    rows = [line.split() for line in text.splitlines()]
    zero_0 = next(row for row in rows if row[:4] == ["8", "2", "15", "0"])
    assert (zero_0[4:7], zero_0[-1]) == (["6.23", "6.23", "1.40"], "*")
    assert not next(row for row in rows if row[:1] == ["3"])[-1].endswith("*")


def test_neither_a_plan_nor_a_model_imports_lightning_or_the_compiler():
    """Either would cost more than all the rest: the plan of any size is there in a second or two.

    torch's own init imports the compiler on the meta device; and it would be overwritten anyway.
    """
    code = (
        "import sys; from mup_lightning.cli.main import main\n"
        "main(['plan', '--model.width', '1600', '--model.depth', '48'])\n"
        "assert not {'lightning', 'torch._dynamo', 'sympy', 'datasets'} & sys.modules.keys()\n"
        "from mup_lightning.config.schema import Config; from mup_lightning.model.gpt2 import build\n"
        "config = Config.from_plain({'model': {'width': 16, 'depth': 1, 'context': 8}})\n"
        "build(config.model, config.derive(), 0)\n"
        "assert not {'torch._dynamo', 'torch._inductor'} & sys.modules.keys()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
