"""Whether the best hyper-parameter stays where it is while the model grows."""
