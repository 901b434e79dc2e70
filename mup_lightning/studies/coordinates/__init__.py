"""The coordinate check: do features, and their changes, keep their size while the model grows? With a verdict."""
