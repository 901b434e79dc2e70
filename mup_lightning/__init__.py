"""mup_lightning: pre-train GPT-2 and Llama models with hyper-parameters derived from one spectral condition."""

__version__ = "0.1.0"
