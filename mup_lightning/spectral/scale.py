"""Exact algebra of scales n^a · L^b · B^c · T^d: how a quantity grows with width, depth, batch and horizon.

Only products, quotients and rational powers occur in the spectral condition, so rational exponents say everything.
`Scale.at` evaluates a scale at ratios of sizes. A third letter, S, is the longer side of an embedding or of the head:
max(n, V). As n grows it is n, and tables print it so; in a real model the vocabulary V may be the longer one. A fourth,
M, is an output side that has a size of its own between 1 and n: that of keys and values which several heads share. E
is the number of experts of a block.
Constants are dropped. B is the tokens of an optimizer step, T those of the run.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Scale:
    """The monomial n^width · L^depth · S^side · M^own · E^experts · B^batch · T^tokens with rational exponents."""

    width: Fraction = Fraction(0)
    depth: Fraction = Fraction(0)
    side: Fraction = Fraction(0)
    own: Fraction = Fraction(0)
    experts: Fraction = Fraction(0)
    batch: Fraction = Fraction(0)
    tokens: Fraction = Fraction(0)

    def __mul__(self, other: "Scale") -> "Scale":
        powers = zip(vars(self).values(), vars(other).values(), strict=True)
        return Scale(*(mine + others for mine, others in powers))

    def __truediv__(self, other: "Scale") -> "Scale":
        return self * other**-1

    def __pow__(self, exponent: int | Fraction) -> "Scale":
        return Scale(*(power * exponent for power in vars(self).values()))

    def __str__(self) -> str:
        of_size = (("n", self.asymptotic.width), ("m", self.own), ("E", self.experts), ("L", self.depth))
        powers = (*of_size, ("B", self.batch), ("T", self.tokens))
        return " ".join(symbol + f"^{shown(power)}" * (power != 1) for symbol, power in powers if power != 0) or "1"

    @property
    def asymptotic(self) -> "Scale":
        """The same as n grows beyond every fixed side, where S is n."""
        return replace(self, width=self.width + self.side, side=Fraction(0))

    @property
    def over_time(self) -> "Scale":
        """What of it is due to batch and horizon."""
        return Scale(batch=self.batch, tokens=self.tokens)

    def at(self, ratios: "Ratios") -> float:
        """The factor on the base's quantity.

        It is exactly 1.0 at the base, which is what makes all parametrizations agree there to the bit.
        """
        sizes = vars(ratios) | {"side": ratios.width if ratios.side is None else ratios.side}
        return math.prod(float(sizes[letter]) ** float(power) for letter, power in vars(self).items())


@dataclass(frozen=True)
class Ratios:
    """Sizes of a model and of its run over those of the base, of each letter of a `Scale`; side None: as the width."""

    width: float = 1.0
    depth: float = 1.0
    side: float | None = None
    own: float = 1.0
    experts: float = 1.0
    batch: float = 1.0
    tokens: float = 1.0


def shown(power: Fraction) -> str:
    """An exponent in text: a fraction, or, of a fitted one, its digits."""
    return str(power) if power.denominator < 10 else f"{float(power):.3g}"


ONE = Scale()
N = Scale(width=Fraction(1))
L = Scale(depth=Fraction(1))
S = Scale(side=Fraction(1))
M = Scale(own=Fraction(1))
E = Scale(experts=Fraction(1))
B = Scale(batch=Fraction(1))
T = Scale(tokens=Fraction(1))


def largest(first: Scale, second: Scale) -> Scale:
    """The scale of a sum or a maximum of two quantities as both n and L grow, and M with n, or not at all; E < n.

    Raises ValueError where neither dominates, as for n against L: the answer would depend on how the two grow together.
    """
    for one, other in ((first, second), (second, first)):
        wide, narrow = one.width + one.own, other.width + other.own
        if one.width >= other.width and wide >= narrow and one.depth >= other.depth:
            return one
    raise ValueError(f"neither {first} nor {second} dominates when n and L grow independently")
