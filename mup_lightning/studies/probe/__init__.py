"""Probe: how an optimizer's raw step scales with width and depth, against what its family declares."""
