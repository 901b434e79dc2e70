"""What `mup-lightning gpu-check` measures: each function is one part, and returns rows."""

import gc
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import LambdaCallback

from mup_lightning.config.load import build_config, preset
from mup_lightning.config.schema import Config
from mup_lightning.files import read_json, write_atomic
from mup_lightning.model.loss import cross_entropy
from mup_lightning.plan.plan import plan
from mup_lightning.studies.scaling import Verdict
from mup_lightning.training.module import build_training
from mup_lightning.training.run import Result, plain
from mup_lightning.training.train import settle, train

FAMILIES = ("gpt2", "llama")
H100_TOKENS = {"small": 420e3, "large": 78e3, "xl": 42e3}
"""Size -> tokens/s that one H100 or H200 (the same chip) shall reach in bf16 on GPT-2's blocks."""
H100_PEAK = 989e12  # FLOP/s of dense bf16 products; NVIDIA's data sheet of the H100 SXM


@dataclass
class Row:
    """A value that was measured, and the bounds, if there are any, that make it PASS."""

    what: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> Verdict | None:
        """Whether it lies within its bounds."""
        if self.low is None and self.high is None:
            return None
        above = self.low is None or self.value >= self.low
        return Verdict.PASS if above and (self.high is None or self.value <= self.high) else Verdict.FAIL


@dataclass
class Place:
    """Where parts work: the folder, the prepared corpus and its tokenizer, and whether it is a rehearsal."""

    folder: Path
    corpus: str
    tokenizer: str
    rehearse: bool

    @property
    def device(self) -> str:
        """Of torch."""
        return "cpu" if self.rehearse else "cuda"

    def now(self) -> float:
        """Seconds, once the GPU has done what it was given."""
        if not self.rehearse:
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak(self) -> int:
        """The peak of allocated bytes since the last call; 0 on a CPU."""
        if self.rehearse:
            return 0
        found = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return found

    def config(self, size: str, family: str = "gpt2", **changes: Any) -> Config:
        """A run on this corpus that validates, logs and measures nothing by itself; names have __ for a dot."""
        quiet = ("validate", "checkpoint", "feature_norms", "spectral_norms", "update_check", "noise_scale")
        values: dict[str, Any] = {f"trainer.{name}_every": 0 for name in quiet}
        values |= {"data.path": self.corpus, "data.tokenizer": self.tokenizer, "data.micro_batch": "auto"}
        values |= {"run.root": str(self.folder / "runs"), "recipe.lr": 2**-9, "data.val_tokens": 1 << 14}
        values |= {"trainer.peak_flops": "off", "trainer.log_every": 1000}
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        if self.rehearse:
            values |= {"model.width": 64, "model.depth": 2, "model.context": 32, "data.batch_size": 8}
            values |= {"trainer.accelerator": "cpu", "trainer.compile": "off", "data.val_tokens": 512}
            values["trainer.max_steps"] = min(values["trainer.max_steps"], 4)
        return build_config([Path("recipes/gpt2.yaml"), preset("size", size), preset("model", family), values])


def _train(config: Config, **options: Any) -> Result:
    """Train, and give the memory back, also after an error: a Trainer and its module refer to each other."""
    try:
        return train(config, progress=False, **{"keep": False, **options})
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _loss(config: Config) -> float:
    loss = _train(config).validation_loss
    assert loss is not None
    return loss


def same_losses(place: Place) -> list[Row]:
    """The validation loss of short runs: bf16 against fp32, and compiled blocks against eager ones."""
    rows = []
    for family in FAMILIES:
        make = partial(place.config, "base", family, trainer__max_steps=40, data__batch_size=16)
        exact = _loss(make(trainer__precision="fp32", trainer__compile="off"))
        for what, precision, compiled, bound in (
            ("bf16", "bf16", "off", 0.02),
            ("compiled, fp32", "fp32", "on", 0.005),
            ("compiled, bf16", "bf16", "on", 0.02),
        ):
            loss = _loss(make(trainer__precision=precision, trainer__compile=compiled))
            rows.append(Row(f"{family}: loss in {what}, over eager fp32", loss - exact, "nats", -bound, bound))
    return rows


def resume(place: Place) -> list[Row]:
    """Whether a run that goes on from a checkpoint ends in the same bytes."""

    def files(name: str, **changes: Any) -> tuple[Path, bytes]:
        changes |= {"trainer__checkpoint_every": 2, "trainer__deterministic": True, "run__name": name}
        config = place.config("base", trainer__max_steps=4, data__batch_size=16, **changes)
        folder = Path(_train(config, keep=True).checkpoint or "")
        return folder, b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))

    for name in ("straight", "resumed"):
        shutil.rmtree(place.folder / "runs" / name, ignore_errors=True)
    folder, straight = files("straight")
    _, again = files("resumed", run__resume=str(folder.with_name("step_00000002")))
    return [Row("a resumed run's last checkpoint differs in bytes", float(straight != again), "", high=0.0)]


def waits(place: Place) -> list[Row]:
    """How often a step that logs nothing makes the CPU wait for the GPU: once, to see NaN before weights change."""
    config = place.config("small", trainer__max_steps=12, data__batch_size=16)
    steps = config.trainer.max_steps - 3

    def watch(trainer: pl.Trainer, *_: Any) -> None:
        if not place.rehearse:  # the first steps make what is made once, and the end of a run waits for its last one
            inside = 2 <= trainer.global_step < trainer.max_steps - 1
            torch.cuda.set_sync_debug_mode("warn" if inside else "default")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _train(config, callbacks=[LambdaCallback(on_train_batch_start=watch)])
        finally:
            if not place.rehearse:
                torch.cuda.set_sync_debug_mode("default")
    seen = [f"{item.filename}:{item.lineno}" for item in caught if "called a synchronizing" in str(item.message)]
    rows = [Row("waits in every step", len(seen) / steps, "", high=1.0)]
    return rows + [Row(f"  of them at {where}", seen.count(where) / steps) for where in dict.fromkeys(seen)]


def flash(place: Place, family: str) -> list[Row]:
    """Whether attention, forward and backward, runs as flash attention, torch's or cuDNN's: no other is allowed to."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    config = place.config("small", family, trainer__max_steps=1)
    model, _ = build_training(config, place.device)
    tokens = torch.zeros(2, config.model.context + 1, dtype=torch.int64, device=place.device)
    allowed = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION] + [SDPBackend.MATH] * place.rehearse
    with torch.autocast(place.device, torch.bfloat16), sdpa_kernel(allowed):
        model.loss(tokens).backward()  # raises where no allowed kernel takes these shapes
    return [Row("flash attention", 1.0, "", low=1.0)]


def strategies(place: Place, names: tuple[str, ...], processes: int) -> list[Row]:
    """The loss of a run under every strategy, over that of one process without any; all at the same time."""
    make = partial(place.config, "base", trainer__max_steps=20, data__batch_size=16, trainer__precision="fp32")
    started = {}
    for name in names:
        config, file = make(), place.folder / f"{name}.yaml"
        config.trainer.strategy, config.trainer.devices, config.run.name = name, processes, name  # type: ignore[assignment]
        shutil.rmtree(place.folder / "runs" / name, ignore_errors=True)
        write_atomic(file, yaml.safe_dump(plain(config)))
        command = [sys.executable, "-m", "mup_lightning.cli.main", "train", "-c", str(file)]
        started[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    alone, rows = _loss(make()), []
    for name, process in started.items():
        said, _ = process.communicate(timeout=240)
        if process.returncode:
            why = f"{name}: ends with {process.returncode}: {said.strip()[-200:]}"
            rows.append(Row(why, float(process.returncode), "", 0.0, 0.0))
            continue
        loss = float(read_json(place.folder / "runs" / name / "result.json", "a result")["validation_loss"])
        rows.append(Row(f"{name}: loss over one process without a strategy", loss - alone, "nats", -0.001, 0.001))
    return rows


def speed(place: Place, size: str, family: str) -> list[Row]:
    """Tokens/s, MFU and peak memory of a real run, beside a bare loop of the same model and micro-batches."""
    batch = {"small": 256, "medium": 128}.get(size, 64)
    config = place.config(size, family, data__batch_size=batch, recipe__optimizer="adamw", trainer__max_steps=6)
    place.peak()
    rate, peak = _train(config).tokens_per_second, place.peak()
    settle(config)
    planned, bare = plan(config, (1,)), _bare(place, config)
    flops = planned.flops.convention_per_token
    name = "CPU" if place.rehearse else torch.cuda.get_device_name(0)
    barred = ("H100" in name or "H200" in name) and family == "gpt2" and size in H100_TOKENS
    rows = [
        Row("tokens/s", rate, "", low=H100_TOKENS[size] if barred else None),
        Row("times the bare loop", rate / bare, "", low=None if place.rehearse else 0.98),
        Row("MFU, of 989 TFLOP/s", flops * rate / H100_PEAK),
        Row("sequences in a forward pass", float(config.data.sequences)),
    ]
    if peak:
        rows.append(Row("peak memory", peak / 1e9, "GB"))
        rows.append(Row("peak memory over plan's", peak / planned.memory[0].total, "", 0.9, 1.1))
    return rows


def steps(place: Place) -> list[Row]:
    """A step of half a million tokens with Muon-Kimi, and one with the same bits in every run, over AdamW's."""
    make = partial(place.config, "small", trainer__max_steps=5, data__batch_size=512, recipe__optimizer="adamw")
    others: dict[str, dict[str, Any]] = {
        "Muon-Kimi's": {"recipe__optimizer": "muon_kimi"},
        "a deterministic": {"trainer__deterministic": True},
    }
    usual = [_train(make()).tokens_per_second]
    rates = {what: _train(make(**changes)).tokens_per_second for what, changes in others.items()}
    usual.append(_train(make()).tokens_per_second)
    bounds = {} if place.rehearse else {"Muon-Kimi's": 1.06}
    rows = [Row("AdamW's step, the second time over the first", usual[0] / usual[1], "times")]
    for what, rate in rates.items():
        rows.append(Row(f"{what} step over AdamW's", sum(usual) / 2 / rate, "times", high=bounds.get(what)))
    return rows


def losses(place: Place) -> list[Row]:
    """Milliseconds of a loss with its gradients: ours in chunks, torch's on whole logits, and Liger's if installed."""
    N, C, V = (64, 32, 256) if place.rehearse else (8192, 768, 50304)
    features, weight = (torch.randn(rows, C, device=place.device, requires_grad=True) for rows in (N, V))
    labels = torch.randint(V, (N,), device=place.device)

    def ours(*, compiled: bool = False) -> torch.Tensor:
        return cross_entropy(features, weight, labels, V, compiled=compiled)[0]

    kernels: dict[str, Callable[[], torch.Tensor]] = {
        "in chunks, compiled (ours)": partial(ours, compiled=not place.rehearse),
        "in chunks, eager (ours)": ours,
        "torch's, whole logits": lambda: torch.nn.functional.cross_entropy((features @ weight.t()).float(), labels),
    }
    with suppress(ImportError):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

        kernels["Liger's"] = lambda: LigerFusedLinearCrossEntropyLoss()(weight, features, labels)
    rows = []
    for name, kernel in kernels.items():
        for turn in range(4):  # the first compiles and allocates
            if turn == 1:
                begin = place.now()
            place.peak()
            with torch.autocast(place.device, torch.bfloat16):
                torch.autograd.grad(kernel(), (features, weight))
        rows.append(Row(f"{name}: forward and backward", (place.now() - begin) / 3 * 1e3, "ms"))
        rows += [Row(f"{name}: memory", peak / 1e9, "GB")] if (peak := place.peak()) else []
    return rows


def _bare(place: Place, config: Config) -> float:
    """Tokens/s of the loop that one writes for a benchmark: compiled blocks, fused AdamW, random tokens on the GPU."""
    model, _ = build_training(config, place.device)
    if not place.rehearse:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2**-9, fused=True)
    sequences, steps = config.data.sequences, config.trainer.max_steps
    shape = (sequences, config.model.context + 1)
    begin = 0.0
    for step in range(steps):
        if step == 1:
            begin = place.now()
        for _ in range(config.data.batch_size // sequences):
            tokens = torch.randint(model.vocab_size, shape, device=place.device)
            with torch.autocast(place.device, torch.bfloat16, enabled=not place.rehearse):
                (model.loss(tokens) * sequences / config.data.batch_size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (steps - 1) * config.tokens_per_step / (place.now() - begin)
