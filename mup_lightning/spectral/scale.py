"""Exact algebra of scales n^a · L^b: how a quantity grows with width n and depth L, constants dropped.

Only products, quotients and rational powers occur in the spectral condition, so rational exponents say everything.
`Scale.at` evaluates a scale at ratios of sizes. A third letter, S, is the longer side of an embedding or of the head:
max(n, V). As n grows it is n, and tables print it so; in a real model the vocabulary V may be the longer one. A fourth,
M, is an output side that has a size of its own between 1 and n: that of keys and values which several heads share.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Scale:
    """The monomial n^width · L^depth · S^side · M^own with rational exponents."""

    width: Fraction = Fraction(0)
    depth: Fraction = Fraction(0)
    side: Fraction = Fraction(0)
    own: Fraction = Fraction(0)

    def __mul__(self, other: "Scale") -> "Scale":
        powers = zip(vars(self).values(), vars(other).values(), strict=True)
        return Scale(*(mine + others for mine, others in powers))

    def __truediv__(self, other: "Scale") -> "Scale":
        return self * other**-1

    def __pow__(self, exponent: int | Fraction) -> "Scale":
        return Scale(*(power * exponent for power in vars(self).values()))

    def __str__(self) -> str:
        powers = (("n", self.asymptotic.width), ("m", self.own), ("L", self.depth))
        return " ".join(symbol + f"^{power}" * (power != 1) for symbol, power in powers if power != 0) or "1"

    @property
    def asymptotic(self) -> "Scale":
        """The same as n grows beyond every fixed side, where S is n."""
        return Scale(self.width + self.side, self.depth, own=self.own)

    def at(
        self, width_ratio: float, depth_ratio: float, side_ratio: float | None = None, own_ratio: float = 1.0
    ) -> float:
        """The factor on the base model's quantity at r_n = n/n_base, r_L = L/L_base, S/S_base (None: r_n), M/M_base.

        It is exactly 1.0 at the base shape, which is what makes all parametrizations agree there to the bit.
        """
        ratios = (width_ratio, depth_ratio, width_ratio if side_ratio is None else side_ratio, own_ratio)
        powers = vars(self).values()
        return math.prod(float(ratio) ** float(power) for ratio, power in zip(ratios, powers, strict=True))


ONE = Scale()
N = Scale(width=Fraction(1))
L = Scale(depth=Fraction(1))
S = Scale(side=Fraction(1))
M = Scale(own=Fraction(1))


def largest(first: Scale, second: Scale) -> Scale:
    """The scale of a sum or a maximum of two quantities as both n and L grow, and M with n, or not at all.

    Raises ValueError where neither dominates, as for n against L: the answer would depend on how the two grow together.
    """
    for one, other in ((first, second), (second, first)):
        wide, narrow = one.width + one.own, other.width + other.own
        if one.width >= other.width and wide >= narrow and one.depth >= other.depth:
            return one
    raise ValueError(f"neither {first} nor {second} dominates when n and L grow independently")
