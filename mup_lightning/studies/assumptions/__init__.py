"""Assumption checks: what the spectral condition assumes, measured over depth while small networks train."""
