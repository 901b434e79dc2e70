"""Exact algebra of scales n^a · L^b: how a quantity grows with width n and depth L, constants dropped.

Only products, quotients and rational powers occur in the spectral condition, so a pair of rational exponents
says everything. `Scale.at` evaluates a scale at ratios of sizes.
"""

from dataclasses import dataclass
from fractions import Fraction

HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Scale:
    """The monomial n^width · L^depth with rational exponents."""

    width: Fraction = Fraction(0)
    depth: Fraction = Fraction(0)

    def __mul__(self, other: "Scale") -> "Scale":
        return Scale(self.width + other.width, self.depth + other.depth)

    def __truediv__(self, other: "Scale") -> "Scale":
        return Scale(self.width - other.width, self.depth - other.depth)

    def __pow__(self, exponent: int | Fraction) -> "Scale":
        return Scale(self.width * exponent, self.depth * exponent)

    def __str__(self) -> str:
        factors = [
            symbol if exponent == 1 else f"{symbol}^{exponent}"
            for symbol, exponent in (("n", self.width), ("L", self.depth))
            if exponent != 0
        ]
        return " ".join(factors) or "1"

    def at(self, width_ratio: float, depth_ratio: float) -> float:
        """The factor by which the quantity differs from the base model's, at r_n = n/n_base and r_L = L/L_base.

        It is exactly 1.0 at the base shape, which is what makes all parametrizations agree there to the bit.
        """
        return float(width_ratio) ** float(self.width) * float(depth_ratio) ** float(self.depth)


ONE = Scale()
N = Scale(width=Fraction(1))
L = Scale(depth=Fraction(1))


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
