"""The time model against closed forms, and against what one H200 and one H100 did (docs/results/gpu.md)."""

import json
import math
from dataclasses import replace
from typing import get_args

import pytest

from mup_lightning.cli.main import main
from mup_lightning.cli.verbs import PlanSettings
from mup_lightning.plan.plan import plan
from mup_lightning.plan.time import BOUNDS, GPUS, STRATEGIES, Machine
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.typed import hints
from tests.plan import test_memory as memory

INSTANT = Machine(1e35, 1e35, 1e15, 1e35, decompositions=1e35)
"""Computes and remembers in no time: what is left is the network's."""


def configure(size="xl", family="gpt2", **changes):
    return memory.configure(f"size/{size}", f"model/{family}", **{"recipe__optimizer": "adamw"} | changes)


def times(machine=GPUS["h100"], gpus=(1,), **changes):
    """(GPUs, strategy) -> its time, with micro-batches that fit the machine."""
    found = plan(configure(**changes), gpus, memory=machine.memory, machine=machine)
    return {(time.gpus, time.strategy): time for time in found.time}


@pytest.mark.parametrize(
    ("gpu", "size", "family", "batch", "sequences", "tokens_per_second"),
    [
        ("h200", "small", "gpt2", 64, 64, 520_000),  # what the shares are chosen by
        ("h200", "small", "gpt2", 256, 256, 519_600),  # these are predictions
        ("h200", "xl", "gpt2", 16, 16, 48_190),
        ("h200", "xl", "gpt2", 64, 16, 48_090),
        ("h100", "small", "gpt2", 256, 128, 479_300),
        ("h100", "small", "llama", 256, 64, 448_800),
        ("h100", "large", "gpt2", 64, 16, 85_110),
        ("h100", "large", "llama", 64, 16, 81_810),
        ("h100", "xl", "gpt2", 64, 8, 40_860),
    ],
)
def test_what_one_gpu_did(gpu, size, family, batch, sequences, tokens_per_second):
    changes = {"data__batch_size": batch, "data__micro_batch": sequences}
    found = times(GPUS[gpu], size=size, family=family, **changes)[1, "single"]
    assert found.tokens / found.seconds == pytest.approx(tokens_per_second, rel=0.05)


@pytest.mark.parametrize(("size", "milliseconds"), [("small", 6.6), ("xl", 157)])
def test_muon_s_step_on_an_h200(size, milliseconds):
    """Milliseconds on the GPU, without clipping; the parameters that AdamW steps are included, but take little."""
    changes = {"size": size, "trainer__gradient_clip": 0.0, "data__batch_size": 1}
    muon, adamw = (
        times(GPUS["h200"], **changes, recipe__optimizer=name)[1, "single"].seconds for name in ("muon_kimi", "adamw")
    )
    own = plan(configure(size)).parameter_count * 28 / (0.56 * 4.8e12)
    assert 1e3 * (muon - adamw + own) == pytest.approx(milliseconds, rel=0.1)


def test_arithmetic_alone_takes_flops_over_the_peak():
    config = configure(data__batch_size=4)
    found = plan(config, machine=Machine(1e15, 1e15, 1e15, 1e35, products=1.0, attention=1.0))
    seconds = found.flops.matmul_per_token * 4 * 1024 / 1e15
    assert found.time[0].seconds == pytest.approx(seconds, rel=1e-12)
    assert found.time[0].mfu == pytest.approx(found.flops.convention_per_token / found.flops.matmul_per_token)
    assert found.time[0].bound == "compute"


def test_bytes_alone_by_hand():
    """One sequence of the base model in bf16: what every part moves."""
    C, L, V, T = 256, 4, 50304, 1024
    found = times(Machine(1e35, 1e35, 1e15, 1e12, passes=1.0), size="base", data__batch_size=1)[1, "single"]
    # The stream and one branch's result beside what products take, statistics of norms, and the softmax's.
    blocks = 4 * L * T * ((28 + 6) * C + 16 + 4 * 4)
    ends, loss = 4 * T * 14 * C, 6 * T * V + 10 * C * V
    matrices, everything = 12 * L * C * C + V * C, 12 * L * C * C + 13 * L * C + 2 * C + V * C + T * C
    assert found.seconds == pytest.approx((blocks + ends + loss + 24 * matrices + 40 * everything) / 1e12, rel=1e-6)
    assert found.bound == "memory"


def test_what_two_gpus_send_each_other():
    """Each sends half of 4N bytes to add gradients up, and half to give the sums back; then 32 MB messages."""
    N, changes = plan(configure()).parameter_count, {"data__batch_size": 8, "data__micro_batch": 2}
    found = times(INSTANT, (2,), **changes)
    half, messages = 2 * N / (0.8 * 450e9), math.ceil(N / 2**23)
    tree, ring = 14e-6 + 2.5e-6, 14e-6 + 1.9e-6
    summed = 2 * half + messages * tree
    groups = len(plan(configure()).groups)
    assert found[2, "ddp"].network == pytest.approx(summed, rel=1e-9)
    assert found[2, "zero1"].network == pytest.approx(summed + half + groups * ring, rel=1e-9)
    assert found[2, "zero2"].network == pytest.approx(2 * summed + half + groups * ring, rel=1e-9)  # in both passes
    assert found[2, "zero3"].network == pytest.approx(2 * 3 * (half + messages * ring), rel=1e-9)
    assert found[2, "fsdp"].network == pytest.approx(2 * 3 * (half + 49 * ring), rel=1e-9)
    # On a real GPU the backward pass hides ddp's exchange, and all computing that of zero3.
    real = times(GPUS["h100"], (2,), **changes | {"data__batch_size": 16, "data__micro_batch": 8})
    assert real[2, "ddp"].network == real[2, "fsdp"].network == 0.0 < real[2, "zero1"].network


def test_matrices_have_owners():
    """Their arithmetic is divided, but never one matrix; where all are cut, weight and gradient go there, and back."""
    changes = {"recipe__optimizer": "muon_kimi", "data__batch_size": 4096, "data__micro_batch": 1}
    C, L = 1600, 48
    slow = Machine(1e35, 1e35, 1e15, 1e35, decompositions=1e35, products=1e-21)  # arithmetic of rules and model alone
    found = times(slow, (1, 8, 4096), **changes)
    passes = times(slow, (1, 8, 4096), **changes | {"recipe__optimizer": "adamw"})
    step = {gpus: found[gpus, "zero1"].compute - passes[gpus, "zero1"].compute for gpus in (8, 4096)}
    step[1] = found[1, "single"].compute - passes[1, "single"].compute
    all_matrices, largest = 5 * L * (4 * 6 + 2 * 18) * C**3, 5 * 18 * C**3
    assert [step[gpus] * 1e14 for gpus in (1, 8, 4096)] == pytest.approx(
        [all_matrices, all_matrices / 8, largest], rel=1e-6
    )
    sent = {rule: times(INSTANT, (8,), **changes | {"recipe__optimizer": rule}) for rule in ("muon_kimi", "adamw")}
    more = {name: sent["muon_kimi"][8, name].network - sent["adamw"][8, name].network for name in STRATEGIES}
    ring, matrices = 14e-6 + 7 * 1.9e-6, 12 * L * C * C
    assert more["fsdp"] == pytest.approx(7 / 8 * 12 * matrices / 8 / 360e9 + 3 * ring, rel=1e-6)
    assert more["ddp"] == pytest.approx(7 / 8 * 4 * matrices / 360e9 + 4 * L * (14e-6 + 2 * 7 * 1.25e-6), rel=1e-6)


def test_sophia_s_estimate_is_a_tenth_of_a_pass():
    lone = {name: times(recipe__optimizer=name)[1, "single"].compute for name in ("sophia", "lion")}
    assert lone["sophia"] / lone["lion"] == pytest.approx(1.1)


@pytest.mark.parametrize("optimizer", FAMILIES)
def test_every_rule_and_strategy_has_a_time(optimizer):
    family = "llama" if optimizer in ("sgd", "muon") else "gpt2"
    changes = {"recipe__optimizer": optimizer, "recipe__eps": 1e-8, "family": family, "model__tied": False}
    found = times(gpus=(1, 8, 48, 4096), size="large", **changes)
    assert len(found) == 1 + 3 * len(STRATEGIES)
    for time in found.values():
        assert 0 < time.seconds < 1e5
        assert 0 < time.mfu < 1
        assert time.bound in BOUNDS


def test_better_machines_are_faster_and_distance_costs():
    changes = {"data__batch_size": 4096, "data__micro_batch": 4}
    found = {name: times(GPUS[name], (8, 64, 512), **changes) for name in GPUS}
    for key in found["h100"]:
        a100, h100, h200, b200 = (found[name][key].seconds for name in ("a100", "h100", "h200", "b200"))
        assert a100 > h100 > h200 > b200
    for name in STRATEGIES:
        rates = [found["h100"][gpus, name].mfu for gpus in (8, 64, 512)]
        assert rates == sorted(rates, reverse=True)
    slow = times(replace(GPUS["h100"], network=5e9), (8, 64), **changes)
    assert slow[64, "zero3"].seconds > slow[64, "ddp"].seconds
    assert slow[8, "zero3"].seconds == found["h100"][8, "zero3"].seconds  # one node needs no network


def test_a_hundred_billion_parameters_on_4096_gpus():
    """A fraction of the peak that others report too; but the casts to bf16, 2N bytes, are in no strategy sharded."""
    shape = {"model__width": 10240, "model__depth": 76, "model__context": 4096, "model__head_size": 128}
    found = times(GPUS["h200"], (4096,), family="llama", **shape, data__batch_size=4096, model__tied=False)
    N = plan(configure(family="llama", **shape)).parameter_count
    assert N > 100e9
    assert found[4096, "ddp"].peak_memory > 16 * N > found[4096, "fsdp"].peak_memory > 2 * N
    assert 0.3 < found[4096, "fsdp"].mfu < 0.6


def test_the_table_the_json_and_the_figure(tmp_path, capsys):
    options = ["plan", "size=xl", "optimizer=adamw", "--gpus", "8,512", "--gpu", "a100"]
    assert get_args(hints(PlanSettings)["gpu"]) == tuple(GPUS)
    assert main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first = found["time"][0]
    assert list(first) == [
        *("gpus", "strategy", "sequences", "passes", "tokens", "compute", "memory", "network", "mfu", "peak_memory"),
        *("seconds", "tokens_per_second", "bound"),
    ]
    assert first["seconds"] == sum(first[kind] for kind in BOUNDS)
    assert main(options) == 0
    text = capsys.readouterr().out
    parts = ("Time of a step on A100", "is no multiple of the number of GPUs; times are of a batch that is")
    assert [part in text for part in parts] == [True, True]
    rows = [line.split() for line in text.splitlines()]
    ddp = next(row for row in rows if row[:2] == ["8", "ddp"])
    assert ddp[2:5] == [str(first["sequences"]), str(first["passes"]), f"{first['peak_memory'] / 1e9:.1f}"]
    assert ddp[6] == f"{first['tokens_per_second']:,.0f}"
    assert next(row for row in rows if row[:2] == ["512", "ddp"])[4] == "+"
    # The memory is the GPU's, or what is said.
    figure = ["--figure", str(tmp_path / "speed.png")]
    for more, limit in (["--gpu", "b200"], 180), (["--gpu", "b200", "--gpu-memory", "20", *figure], 20):
        assert main(["plan", "size=xl", "--gpus", "1,8,512", *more]) == 0
        text = capsys.readouterr().out
        assert f"over {limit} GB" in text
    assert "figure: " in text
    assert (tmp_path / "speed.png").exists()


def test_a_node_s_ports_carry_the_rings_of_all_its_gpus():
    """Across nodes 8 ports of 50 GB/s are less than NVLink's 450; clear of latencies, which are NCCL's."""
    found = {g: times(INSTANT, (g,), data__batch_size=16, data__micro_batch=1)[g, "ddp"].network for g in (8, 16)}
    N, buckets = plan(configure()).parameter_count, 186
    trees = [14e-6 + 2 * (7 * 1.25e-6 + 8.5e-6 * more) for more in (0, 1)]
    moved = [found[g] - buckets * tree for g, tree in zip((8, 16), trees, strict=True)]
    assert moved == pytest.approx([7 / 4 * 4 * N / 360e9, 15 / 8 * 4 * N / 320e9], rel=1e-6)
