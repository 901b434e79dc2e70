"""Several corpora in one run, against an order that is worked out here."""

from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
import torch

from mup_lightning.config.data import DataConfig
from mup_lightning.config.load import build_config
from mup_lightning.data.datamodule import MicroBatches
from mup_lightning.data.mixture import Corpora, source_of
from mup_lightning.data.shards import Manifest, TokenStore, manifest_hash
from mup_lightning.errors import UserError
from mup_lightning.typed import Raw, convert, hints

from .test_datamodule import SEED, module
from .test_sampler import brute_force_run

SHARES = [
    ["0.7", "0.3"],
    ["0.5", "0.5"],
    ["1/3", "1/3", "1/3"],
    ["0.9", "0.05", "0.03", "0.02"],
    ["0.01", "0.01", "0.98"],
    ["0.123456789", "0.876543211"],
]


@pytest.mark.parametrize("shares", SHARES)
def test_every_stretch_has_the_proportions(shares):
    """Within two samples, however long it is, and wherever it begins; each source counts its own without a gap."""
    shares = [Fraction(share) for share in shares]
    remaining = [share / sum(shares[i:]) for i, share in enumerate(shares)]
    for begin, length in ((0, 5000), (10**15, 3000)):
        drawn = [source_of(begin + n, remaining) for n in range(length)]
        for source, share in enumerate(shares):
            own = [number for which, number in drawn if which == source]
            assert own == list(range(own[0], own[0] + len(own)))
            assert abs(own[0] - begin * share) < 2
            ahead = [float(n) for n in accumulate((which == source) - share for which, _ in drawn)]
            assert max(ahead) - min(ahead) < 3
            assert max(map(abs, ahead)) < 2
    assert [source_of(n, [Fraction(7, 10), Fraction(1)]) for n in range(6)] == [
        *((0, 0), (1, 0), (0, 1), (0, 2), (0, 3), (1, 1))
    ]


SAMPLES = {"a": 62, "b": 24, "c": 31}


@pytest.fixture
def corpora(make_corpus):
    """Folder -> weight of three corpora of different sizes and, by their length, different text."""
    sizes = {"a": 1000, "b": 400, "c": 500}
    return {str(make_corpus(name=name, train=sizes[name], val=200 + i)): 5 - i for i, name in enumerate(SAMPLES)}


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 12), (1, 1), (3, 2), (4, 3)])
def test_samples_depend_on_their_counter_alone(corpora, world_size, micro_batch):
    """Any number of processes, begun anywhere: each corpus in its own shuffled epochs, in its place in the mixture."""
    samples = module(corpora).samples
    ranks = [MicroBatches(samples, micro_batch, rank, world_size) for rank in range(world_size)]
    per_step = 12 // (micro_batch * world_size)
    batches = [ranks[rank][number] for number in range(5 * per_step, 40 * per_step) for rank in range(world_size)]
    found = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    assert found["counters"].tolist() == list(range(60, 480))
    orders = [brute_force_run(SEED, n, 480) for n in SAMPLES.values()]
    texts = [
        TokenStore.open(folder, "train").windows([0], 16 * n + 1)[0]
        for folder, n in zip(corpora, SAMPLES.values(), strict=True)
    ]
    remaining = [Fraction(5, 12), Fraction(4, 7), Fraction(1)]
    columns = (found[name].tolist() for name in ("counters", "sources", "tokens"))
    for counter, source, tokens in zip(*columns, strict=True):
        expected, number = source_of(counter, remaining)
        start = 16 * orders[expected][number]
        assert (source, tokens) == (expected, texts[expected][start : start + 17].tolist())
    assert np.bincount(found["sources"]).tolist() == pytest.approx([175, 140, 105], abs=2)
    text = module(corpora).describe(torch.tensor([70]))
    assert "counter 70 (step 5): sample" in text
    assert list(corpora)[source_of(70, remaining)[0]] in text


def test_the_corpora_of_a_mixture(corpora):
    """Whatever changes the order of samples changes the hash; losses are means by share; names tell them apart."""
    config = DataConfig(path=corpora, tokenizer="bytes")
    found, folders = Corpora(config), list(corpora)
    assert found.names == ["a", "b", "c"]
    others = [
        {**corpora, folders[0]: 6},
        {folder: corpora[folder] for folder in reversed(folders)},
        {folder: corpora[folder] for folder in folders[:2]},
    ]
    assert len({found.hash, *(Corpora(DataConfig(path=other)).hash for other in others)}) == 4
    assert Corpora(DataConfig(path={folder: 10 * corpora[folder] for folder in folders})).hash == found.hash
    assert found.mean([1.0, 2.0, 4.0]) == pytest.approx((5 + 8 + 12) / 12)
    assert found.epochs(2400) == pytest.approx(2400 * 4 / 12 / 400)
    assert found.validation_tokens(None) == 200 + 201 + 202
    assert found.validation_tokens(201) == 200 + 201 + 201
    plain, mixed = (module(path) for path in (folders[0], {folders[0]: 0.3}))  # alone in a mixture
    for number in (0, 50):
        batches = [MicroBatches(data.samples, 3)[number]["tokens"] for data in (plain, mixed)]
        assert torch.equal(*batches)
    assert mixed.corpora.hash == plain.corpora.hash == manifest_hash(Manifest.load(folders[0]))


def test_a_mixture_as_it_is_typed(corpora):
    """On the command line, in files; a mapping is one value, so that a later layer replaces all of it."""
    hint = hints(DataConfig)["path"]
    assert convert(Raw("{data/a.b: 0.7, c: 3e-1}"), hint, "data.path") == {"data/a.b": 0.7, "c": 0.3}
    assert convert(Raw("data/prepared/a"), hint, "data.path") == "data/prepared/a"
    layers = [{"data": {"path": {"a.b": 1, "c": 2}}}, {"data.path": {"d": 1, "e": 1}}]
    assert build_config(layers).data.path == {"d": 1.0, "e": 1.0}
    assert build_config([*layers, {"data.path": "f"}]).data.path == "f"
    for wrong in ("{}", "{a: 0}", "{a: x}", "[a, b]"):
        with pytest.raises(UserError, match=r"data.path is .*; expected the folder of a .*, or several with their"):
            convert(Raw(wrong), hint, "data.path")


def test_corpora_of_different_vocabularies_are_refused(corpora, make_corpus):
    other = make_corpus(name="other")
    manifest = Manifest.load(other)
    manifest.tokenizer, manifest.vocab_hash = "llama", "0" * 64
    manifest.save(other)
    for tokenizer in ("bytes", "corpus"):
        config = build_config([{"data.path": {**corpora, str(other): 1.0}, "data.tokenizer": tokenizer}])
        with pytest.raises(UserError, match=r"'other' has another vocabulary: tokenizer 'llama:0+' .*'bytes'"):
            module(config.data.path, tokenizer=config.data.tokenizer)
