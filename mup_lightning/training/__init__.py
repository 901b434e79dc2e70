"""Train a model, and use what was trained."""

import os


def tune_allocator() -> None:
    """Let torch's CPU allocator use huge pages: a GPT-2 vocabulary's logits are otherwise slow to map and unmap.

    To be called before torch allocates for the first time. A value that is set already stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
