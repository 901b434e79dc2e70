"""Assumption checks: what the spectral condition takes for granted, measured over depth while small networks train."""
