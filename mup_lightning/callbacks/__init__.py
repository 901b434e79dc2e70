"""What a run measures, logs and watches for while it trains: one concern a file."""
