"""Update rules, one a file, behind one torch Optimizer; parameter groups and the learning-rate schedule."""
