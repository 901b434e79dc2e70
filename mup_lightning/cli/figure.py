"""`mup-lightning figure`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mup_lightning.errors import UserError

if TYPE_CHECKING:
    from mup_lightning.studies.features.report import Row

FORMATS = (".png", ".pdf", ".svg")


def main(argv: list[str]) -> int:
    """Draw feature norms, and say where the picture is."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="mup-lightning figure",
        description="Draw feature norms from the TensorBoard logs of finished or running runs.\n"
        "One run: its norms across depth, at several steps. Several runs: one line per size over the steps, SP and\n"
        "recipe side by side; muP asks that the lines of all sizes lie on each other.\n\nexample:\n"
        "  mup-lightning figure runs/nano-muon_kimi-mup\n"
        "  mup-lightning figure runs/sp-64x4 runs/sp-256x4 runs/mup-64x4 runs/mup-256x4 --out growth.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run's folder, which holds config.yaml")
    parser.add_argument(
        "--point",
        help="what was measured: embedding, attention, attention_scaled, mlp, mlp_scaled, residual, final_norm, logits "
        "(default: an overview of one run; residual, in the last block, of several)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the picture, .png, .pdf or .svg (default: feature_norms.png; in its folder where there is one run)",
    )
    options = parser.parse_args(argv)
    out: Path = options.out or Path(options.runs[0] if len(options.runs) == 1 else ".") / "feature_norms.png"
    if out.suffix not in FORMATS:
        raise UserError(f"--out is {out}; expected a file name that ends in {', '.join(FORMATS)}")

    from mup_lightning.studies.features.feature_figures import draw_comparison, draw_run
    from mup_lightning.studies.features.report import compare, other_differences, read_run

    runs = [read_run(folder) for folder in options.runs]
    if not out.parent.is_dir():
        raise UserError(f"--out is {out}, but there is no folder {out.parent}; make it first")
    if len(runs) == 1:
        draw_run(runs[0], out, options.point)
    else:
        point = options.point or "residual"
        rows = compare(runs, point)
        draw_comparison(rows, point, out)
        print("\n".join(_spreads(rows)))
        if left_out := [run.name for run in runs if not any(run in row.runs for row in rows)]:
            print(
                f"note: not drawn, because no other run shares their width or depth: {', '.join(left_out)}",
                file=sys.stderr,
            )
        if differing := other_differences(runs):
            print(f"note: the runs also differ in {', '.join(differing)}", file=sys.stderr)
    print(f"wrote {out}")
    return 0


def _spreads(rows: list[Row]) -> list[str]:
    """The picture in numbers."""
    lines = []
    for row in rows:
        for panel in row.panels:
            if (spread := panel.spread()) is not None:
                sizes = f"{row.varying} {panel.lines[0][0]} to {panel.lines[-1][0]}"
                what = f"{panel.parametrization}, {sizes}" + (f", {row.fixed}" if row.fixed else "")
                lines.append(f"{what}: at step {spread[0]} the largest norm is {spread[1]:.3g} times the smallest")
    return lines
