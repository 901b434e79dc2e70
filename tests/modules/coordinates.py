"""Coordinate check of foreign modules: python -m tests.modules.coordinates [gpt2 llama vit mlp timm] [--seeds 3]

Trains each for a few steps at several widths and depths, as its authors initialise it under torch's AdamW, and under
the recipe, and prints how the last residual stream and the change of the outputs grow, with 95 % intervals.
"""

import argparse

import torch
import torch.nn.functional as F
from tqdm import tqdm

from mup_lightning import parametrize
from mup_lightning.studies.scaling import fit
from tests.modules.networks import BUILD, FINAL_NORM, batch, logits, timm_vit

BASE = (64, 2)
WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 4, 8, 16)
STEPS = 8
MODULES = BUILD | {"timm": timm_vit}
LR = 2**-9


def rms(tensor):
    return tensor.detach().double().square().mean().sqrt().item()


def measure(name, width, depth, seed, *, recipe, optimizer="adamw", lr=LR, base=BASE, steps=STEPS):
    """RMS of the last residual stream, and of the change of the outputs, on one batch, after some steps."""
    torch.manual_seed(seed)
    model, (x, _) = MODULES[name](width, depth), batch(name, 1000)
    if recipe:
        stepper = parametrize(
            model, base=MODULES[name](*base), grown=MODULES[name](2 * base[0], 1), example=x, optimizer=optimizer, lr=lr
        ).optimizer()
    else:
        stepper = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), eps=1e-16, weight_decay=0.0)
    stream = []
    model.get_submodule(FINAL_NORM[name]).register_forward_pre_hook(lambda _, args: stream.append(rms(args[0])))
    model.eval()  # the same function throughout: no dropout
    with torch.no_grad():
        before = logits(model, x)
    for step in range(steps):
        inputs, labels = batch(name, 10 * seed + step)
        F.cross_entropy(logits(model, inputs), labels).backward()
        stepper.step()
        stepper.zero_grad()
    with torch.no_grad():
        after = logits(model, x)
    return {"last stream": stream[-1], "change of outputs": rms(after - before)}


def exponents(name, axis, sizes, seeds, **options):
    """What is measured -> its exponent over the sizes."""
    found = []
    for seed in range(seeds):
        for size in sizes:
            shape = (size, BASE[1]) if axis == "width" else (BASE[0], size)
            found.append(measure(name, *shape, seed, **options))
    rows = [found[seed * len(sizes) : (seed + 1) * len(sizes)] for seed in range(seeds)]
    return {key: fit(sizes, [[one[key] for one in row] for row in rows]) for key in found[0]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(BUILD))
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    todo = [
        (n, axis, sizes, recipe)
        for n in asked.names
        for axis, sizes in (("width", WIDTHS), ("depth", DEPTHS))
        for recipe in (False, True)
    ]
    print(f"{'module':8} {'axis':16} {'':9} {'last stream':>18} {'change of outputs':>20}")
    for name, axis, sizes, recipe in tqdm(todo, disable=None):
        found = exponents(name, axis, sizes, asked.seeds, recipe=recipe)
        cells = [f"{one.exponent:+.2f} ± {one.half_width:.2f}" for one in found.values()]
        tqdm.write(
            f"{name:8} {f'{axis} {sizes[0]} to {sizes[-1]}':16} {'recipe' if recipe else 'default':9} "
            f"{cells[0]:>18} {cells[1]:>20}"
        )


if __name__ == "__main__":
    main()
