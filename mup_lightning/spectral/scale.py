"""Exact algebra of scales n^a · L^b: how a quantity grows with width n and depth L, constants dropped.

Only products, quotients and rational powers occur in the spectral condition, so rational exponents say everything.
`Scale.at` evaluates a scale at ratios of sizes. A third letter, S, is the longer side of an embedding or of the head:
max(n, V). As n grows it is n, and tables print it so; in a real model the vocabulary V may be the longer one.
"""

from dataclasses import dataclass
from fractions import Fraction

HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Scale:
    """The monomial n^width · L^depth · S^side with rational exponents."""

    width: Fraction = Fraction(0)
    depth: Fraction = Fraction(0)
    side: Fraction = Fraction(0)

    def __mul__(self, other: "Scale") -> "Scale":
        return Scale(self.width + other.width, self.depth + other.depth, self.side + other.side)

    def __truediv__(self, other: "Scale") -> "Scale":
        return self * other**-1

    def __pow__(self, exponent: int | Fraction) -> "Scale":
        return Scale(self.width * exponent, self.depth * exponent, self.side * exponent)

    def __str__(self) -> str:
        factors = [
            symbol if exponent == 1 else f"{symbol}^{exponent}"
            for symbol, exponent in (("n", self.asymptotic.width), ("L", self.depth))
            if exponent != 0
        ]
        return " ".join(factors) or "1"

    @property
    def asymptotic(self) -> "Scale":
        """The same as n grows beyond every fixed side, where S is n."""
        return Scale(self.width + self.side, self.depth)

    def at(self, width_ratio: float, depth_ratio: float, side_ratio: float | None = None) -> float:
        """The factor by which the quantity differs from the base model's, at r_n = n/n_base and r_L = L/L_base.

        It is exactly 1.0 at the base shape, which is what makes all parametrizations agree there to the bit.

        Args:
            width_ratio: r_n.
            depth_ratio: r_L.
            side_ratio: S over the base model's; None: r_n, as where the width is the longer side.
        """
        side = width_ratio if side_ratio is None else side_ratio
        return (
            float(width_ratio) ** float(self.width) * float(depth_ratio) ** float(self.depth) * side ** float(self.side)
        )


ONE = Scale()
N = Scale(width=Fraction(1))
L = Scale(depth=Fraction(1))
S = Scale(side=Fraction(1))


def largest(first: Scale, second: Scale) -> Scale:
    """The scale of a sum or a maximum of two quantities as both n and L grow.

    Raises:
        ValueError: neither dominates, as for n against L: the answer would depend on how the two grow together.
    """
    if first.width >= second.width and first.depth >= second.depth:
        return first
    if second.width >= first.width and second.depth >= first.depth:
        return second
    raise ValueError(f"neither {first} nor {second} dominates when n and L grow independently")
