"""`mup-lightning figure`."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from mup_lightning.studies.features.report import FigureSettings, run


def main(argv: list[str]) -> int:
    """Draw feature norms; see `report.run`."""
    parser = ArgumentParser(prog="mup-lightning figure", description="Draw feature norms from runs' TensorBoard logs.")
    parser.add_class_arguments(FigureSettings, skip={"runs"})
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, which holds config.yaml")
    return run(FigureSettings(**parser.parse_args(argv).as_dict()))
