"""Options of the rules are refused by name where they define no update."""

import pytest

from mup_lightning.config import optimizers as options
from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.errors import UserError

CASES = [
    ("AdamWOptions", "adamw", {"beta1": 1.0, "beta2": -0.1}),
    ("MuonOptions", "muon", {"momentum": 1.0, "steps": 0}),
    ("SGDOptions", "sgd", {"momentum": 1.0}),
    ("LionOptions", "lion", {"beta1": 1.0, "beta2": float("nan")}),
    ("SophiaOptions", "sophia", {"beta1": 1.0, "beta2": 1.0, "rho": 0.0, "hessian_every": 0, "eps": 0.0}),
    ("ShampooOptions", "shampoo", {"beta1": 1.0, "beta2": 1.0, "precondition_every": 0, "max_dimension": 0}),
    ("SOAPOptions", "soap", {"beta1": 1.0, "beta2": 1.0, "eps": 0.0, "precondition_every": 0, "max_dimension": 0}),
    ("SSOOptions", "sso", {"momentum": 1.0, "radius": 0.0, "steps": 0, "tolerance": 0.0}),
]


@pytest.mark.parametrize(
    ("cls", "section", "key", "value"),
    [(cls, section, key, value) for cls, section, values in CASES for key, value in values.items()],
)
def test_each_is_refused_by_name(cls, section, key, value):
    with pytest.raises(UserError, match=rf"^rules\.{section}\.{key} is "):
        getattr(options, cls)(**{key: value})


def test_nesterov_needs_momentum():
    with pytest.raises(UserError, match=r"rules\.sgd\.nesterov is true, but rules\.sgd\.momentum is 0"):
        options.SGDOptions(momentum=0.0, nesterov=True)


def test_every_section_has_cases():
    assert {section for _, section, _ in CASES} == set(vars(RuleOptions()))
