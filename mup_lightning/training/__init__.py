"""The LightningModule, strategies, checkpoints and the function that trains."""
