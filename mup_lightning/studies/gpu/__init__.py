"""Is this machine's GPU used rightly, and fully? One command measures it; here its options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mup_lightning.typed import Bound, PositiveFloat, Typed

KNOWN = ("small", "medium", "large", "xl")
Sizes = Annotated[tuple[str, ...], Bound(f"some of {','.join(KNOWN)}", lambda sizes: sizes and set(sizes) <= {*KNOWN})]


@dataclass
class GpuCheckSettings(Typed, prefix="--"):
    """Measure on this machine's GPUs first whether training is right, then how fast it is and what memory it takes.

    Right: bf16 against fp32 losses, compiled against eager ones, flash attention for both families of blocks, a resume
    to the bit, waits for the GPU between log steps, and, with two GPUs, every strategy against one process. Fast: both
    families at several sizes beside a bare loop of the same model, AdamW against Muon-Kimi, kernels of the loss. Parts
    run in a process of their own: one that fails costs no other. Needs the working directory to be the project's.

    Attributes:
        out: folder of gpu_check.json and gpu_check.md, which are written anew after every part.
        minutes: no further part begins after that; those left out are named.
        sizes: of the models whose speed is measured, presets of recipes/size.
        rehearse: on the CPU with tiny models: does the flow work? Says nothing about speed.
    """

    out: Path = Path("runs/gpu_check")
    minutes: PositiveFloat = 10.0
    sizes: Sizes = KNOWN
    rehearse: bool = False
