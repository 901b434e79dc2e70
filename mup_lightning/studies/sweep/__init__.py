"""Hyper-parameter sweeps: from a file of grids to one table of results."""
