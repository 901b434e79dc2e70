"""Tuning for a large model on small ones that resemble it."""
