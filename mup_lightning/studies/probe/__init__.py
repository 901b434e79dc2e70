"""The probe: how an optimizer's raw direction really scales with width and depth, measured on small networks."""
