"""What rules share: batches, chunks, and options that are refused by name where they define no update."""

import pytest
import torch

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.optim import rule as module
from mup_lightning.optim.registry import SECTIONS, options_in_force, resolve_rules
from mup_lightning.optim.rule import Item, batches, chunks


def items(device, *shapes, blocks=1):
    return [Item(torch.empty(shape, device=device), torch.empty(0), {}, blocks) for shape in shapes]


@pytest.mark.parametrize(
    ("found", "sizes"),
    [
        (items("cpu", *[(512, 512)] * 5), [[1, 1], [1, 1], [1]]),  # two matrices of a megabyte: a core's cache
        (items("meta", *[(512, 512)] * 5), [[1] * 5]),  # elsewhere, as on a GPU, up to 64 megabytes
        (items("cpu", (1024, 1024), (1024, 1024)), [[1], [1]]),  # larger than a batch: alone
        # A fused QKV and a square projection share one; never two shapes, or two dtypes.
        (
            [
                *items("cpu", (24, 8), blocks=3),
                *items("cpu", (8, 8), (24, 8)),
                Item(torch.empty(8, 8, dtype=torch.float64), torch.empty(0), {}),
            ],
            [[3, 1], [1], [1]],
        ),
    ],
)
def test_batches(found, sizes):
    assert [[item.blocks for item in batch] for batch in batches(found)] == sizes


@pytest.mark.parametrize(("shape", "rows"), [((7, 4), [2, 2, 2, 1]), ((3, 20), [1, 1, 1]), ((11,), [8, 3])])
def test_chunks_are_views_of_all_rows(shape, rows, monkeypatch):
    monkeypatch.setitem(module._CHUNK, "cpu", 8)
    one, two = torch.zeros(shape), torch.randn(shape)
    found = list(chunks(one, two))
    for a, b in found:
        a.copy_(b)
    assert [len(a) for a, _ in found] == rows
    assert torch.equal(one, two)


NONSENSE = {float: ["x", -1.0, float("nan"), None], int: [0, 2.5, "x"], bool: ["perhaps"], str: ["float16"]}
NONSENSE |= {type(None): [], tuple: [[1.0, 2.0], [float("inf"), 1.0, 1.0], 3, "polar"]}
CASES = [
    (section, key, value)
    for section, rule in SECTIONS.items()
    for key, default in vars(rule).items()
    for value in NONSENSE[type(default)]
]


@pytest.mark.parametrize(("section", "key", "value"), CASES)
def test_a_value_that_defines_no_update_is_refused_by_name(section, key, value):
    with pytest.raises(UserError, match=rf"^rules\.{section}\.{key} is .*; expected "):
        options_in_force({section: {key: value}}, section)


def resolved(rules, optimizer):
    config = Config.from_plain({"rules": rules, "recipe": {"optimizer": optimizer}})
    resolve_rules(config)
    return config.rules


def test_options_in_force_are_the_defaults_and_what_was_set_of_the_run_s_own_sections_and_those_named():
    adamw, muon = (vars(SECTIONS[name]) for name in ("adamw", "muon"))
    lion = {"beta1": 0.5, "beta2": 0.99}
    assert resolved({"lion": {"beta1": 0.5}}, "lion") == {"lion": lion}
    as_yaml = {"coefficients": list(muon["coefficients"])}
    found = resolved({"lion": {"beta1": 0.5}, "muon": as_yaml}, "muon_kimi")
    assert list(found.items()) == [("muon", muon), ("adamw", adamw), ("lion", lion)]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"muon": {"stepz": 5}}, r"unknown option rules\.muon\.stepz; did you mean rules\.muon\.steps\?"),
        ({"moun": {}}, r"unknown option rules\.moun; did you mean rules\.muon\?"),
        ({"muon_kimi": {"steps": 5}}, r"unknown option rules\.muon_kimi; did you mean rules\.muon\?"),
        ({"muon": 3}, r"rules is {'muon': 3}; expected keys and values below it"),
        ({"lion": {"beta1": 1.0}}, r"rules\.lion\.beta1 is 1\.0; expected a number from 0 to below 1"),
        ({"muon": {"coefficients": "muon"}}, r"coefficients is 'muon'; expected 3 values, each .*, or polar_express$"),
        ({"muon": {"dtype": "half"}}, r"rules\.muon\.dtype is 'half'; expected one of auto, float32, bfloat16"),
        ({"sgd": {"momentum": 0.0, "nesterov": True}}, r"rules\.sgd\.nesterov is true, but rules\.sgd\.momentum is 0"),
    ],
)
def test_what_is_wrong_with_options_is_said_in_one_line(rules, message):
    with pytest.raises(UserError, match=message):
        resolved(rules, "adamw")
