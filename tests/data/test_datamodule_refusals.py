"""What the data refuses: another order than the checkpoint's, a Trainer that does not fit, damaged shards."""

import numpy as np
import pytest

from mup_lightning.errors import UserError

from .test_datamodule import BATCH, fit, module, rank_batches


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 24}, "batch_size = 12, this run has batch_size = 24"),
        ({"seed": 8}, "seed = 7, this run has seed = 8"),
        ({"context": 8}, "context = 16, this run has context = 8"),
        ({"corpus": True}, "corpus = .*, this run has corpus = "),
    ],
)
def test_another_order_is_not_resumed(corpus, make_corpus, early, change, message):
    data = module(corpus)
    data.setup()
    other = module(make_corpus(train=1010, name="other")) if "corpus" in change else module(corpus, **change)
    with pytest.raises(UserError, match=message):  # noqa: PT012  # whichever comes second finds it
        if early:
            other.load_state_dict(data.state_dict())
            other.setup()
        else:
            other.setup()
            other.load_state_dict(data.state_dict())


def test_a_state_that_is_not_what_the_step_says(corpus):
    data = module(corpus)
    data.setup()
    for consumed in (3 * BATCH, 0):
        with pytest.raises(UserError, match=rf"{consumed} samples were consumed, but 4 steps of 12 are 48"):
            rank_batches(corpus, 0, 1, 3, 4, {**data.state_dict(), "consumed_samples": consumed})


def test_bad_settings(corpus, make_corpus):
    for key, value in (("context", 0), ("seed", -1), ("max_steps", -1)):
        with pytest.raises(UserError, match=f"{key} is {value}"):
            module(corpus, **{key: value})
    with pytest.raises(
        UserError, match=r"train split of .* has 1000 tokens, but a context of 1000 needs at least 1001"
    ):
        module(corpus, context=1000).setup()
    with pytest.raises(UserError, match=r"val split of .* has 200 tokens"):
        module(corpus, context=200).setup()
    with pytest.raises(UserError, match="manifest of another vocabulary"):
        module(corpus, tokenizer="gpt2").setup()
    with pytest.raises(UserError, match=r"data\.batch_size = 12 cannot be shared out"):
        module(corpus, micro_batch=5).setup()
    with pytest.raises(UserError, match=r"data\.val_tokens = 8"):
        module(corpus, val_tokens=8).setup()


def test_a_trainer_that_does_not_fit(corpus):
    with pytest.raises(UserError, match=r"accumulate_grad_batches=2\), but the batch size needs 4 micro-batches"):
        fit(module(corpus), 2)
    with pytest.raises(UserError, match=r"Trainer\(max_steps=9\), but the data was set up for 5 steps"):
        fit(module(corpus, max_steps=5), 4)


def test_shards_are_verified_unless_told_not_to(corpus):
    path = corpus / "train-00000.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    module(corpus, verify=False).setup()
    with pytest.raises(UserError, match="is damaged"):
        module(corpus).setup()


def test_an_error_in_a_worker_keeps_its_message(corpus):
    path = corpus / "train-00000.bin"
    path.write_bytes(np.full(300, 999, dtype="<u2").tobytes())
    data = module(corpus, verify=False, workers=1)
    data.setup()
    with pytest.raises(UserError, match=r"train-00000\.bin has the token id 999"):
        list(data.train_dataloader())
