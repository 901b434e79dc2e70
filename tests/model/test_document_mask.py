"""Documents in one window, against the same documents in windows of their own."""

from itertools import pairwise

import pytest
import torch

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import build

END = 0
FAMILIES = {
    "learned": {},
    "rope": {"position": "rope", "norm": "rmsnorm", "gated": True, "activation": "silu", "heads_per_kv": 2},
    "parallel": {"parallel": True, "qk_norm": True},
}


def models(family):
    """The same model, masked and not."""
    for mask in (True, False):
        model = {"width": 32, "depth": 2, "heads": 4, "context": 24, "document_mask": mask, **FAMILIES[family]}
        config = Config.from_plain({"model": model, "data": {"tokenizer": "bytes"}})
        assert config.model.end_of_text == (END if mask else None)
        yield build(config.model, config.derive(), seed=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_in_a_window_are_windows_of_their_own(family):
    """Forward and gradients; a document begins with the end of the one before it, a window anywhere."""
    masked, plain = (model.double() for model in models(family))
    tokens = torch.randint(1, 256, (2, 25), generator=torch.Generator().manual_seed(3))
    places = ([5, 13, 14], [0, 20])
    for row, ends in zip(tokens, places, strict=True):
        row[ends] = END
    loss = masked.loss(tokens)
    loss.backward()
    alone = torch.zeros((), dtype=torch.float64)
    for row, ends in zip(tokens, places, strict=True):
        cuts = sorted({0, *ends, 24})
        for first, end in pairwise(cuts):
            window = row[None, first : end + 1]
            alone = alone + plain.loss(window) * (end - first)
            shared = masked(row[None, :24])[:, first:end]
            torch.testing.assert_close(shared, plain(window[:, :-1]), atol=1e-9, rtol=0)
    (alone / 48).backward()
    assert float(loss) == pytest.approx(float(alone) / 48, abs=1e-9)
    for name, parameter in masked.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad, atol=1e-9, rtol=0)
    assert not torch.allclose(masked(tokens[:, :24]), plain(tokens[:, :24]), atol=1e-3)


def test_the_token_that_ends_documents_is_that_of_the_vocabulary():
    config = Config.from_plain({"model": {"document_mask": True}})
    assert config.model.end_of_text == 50256
    assert Config.from_plain({"model": {"document_mask": True, "end_of_text": 13}}).model.end_of_text == 13
    with pytest.raises(UserError, match="document_mask is 3"):
        Config.from_plain({"model": {"document_mask": 3}})
