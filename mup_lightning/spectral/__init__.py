"""The theory: scales, roles, the spectral condition, optimizer families and the recipe they imply. No torch."""
