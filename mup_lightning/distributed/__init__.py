"""How tensors and work are distributed over processes."""
