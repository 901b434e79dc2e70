"""Muon in Moonlight's form: A = 0.2·√max(n_in, n_out) · U Vᵀ of the momentum (Liu et al. 2025, arXiv 2502.16982).

The factor gives the update AdamW's usual RMS size, so that both can share one base learning rate. All else is Muon.
"""

from __future__ import annotations

from mup_lightning.optim.muon import Muon


class MuonKimi(Muon):
    """State as Muon's."""

    name = "muon_kimi"

    @staticmethod
    def scale(rows: int, columns: int) -> float:
        """See `Muon`."""
        return 0.2 * max(rows, columns) ** 0.5
