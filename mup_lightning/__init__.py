"""mup_lightning: pre-train language models with hyper-parameters derived from one spectral condition."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`parametrize`, which needs torch, is imported when it is first used."""
    if name != "parametrize":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from mup_lightning.modules.parametrize import parametrize

    return parametrize
