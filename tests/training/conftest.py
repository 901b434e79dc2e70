"""Runs of this folder are validated on few tokens: on all of them that would take longer than the training."""

from functools import partial

import pytest


@pytest.fixture
def tiny(tiny):
    """As everywhere, but for the validation; all its tokens: tiny(**{"data.val_tokens": None})."""
    return partial(tiny, **{"data.val_tokens": 256})
