"""The recipe for any torch module: roles of its parameters and its residual branches are found, not declared."""
