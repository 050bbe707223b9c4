"""Numbers to draw, written as an option: ``128``, ``uniform:64,256``, ``normal:128,32``, ..."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

_DRAW: dict[str, tuple[int, Callable[[random.Random, tuple[float, ...]], float]]] = {
    "constant": (1, lambda rng, p: p[0]),
    "uniform": (2, lambda rng, p: rng.uniform(p[0], p[1])),
    "normal": (2, lambda rng, p: rng.gauss(p[0], p[1])),
    "lognormal": (2, lambda rng, p: p[0] * math.exp(rng.gauss(0.0, p[1]))),
    "exponential": (1, lambda rng, p: rng.expovariate(1 / p[0]) if p[0] else 0.0),
}
FORMS = "a number, uniform:LOW,HIGH, normal:MEAN,SD, lognormal:MEDIAN,SIGMA or exponential:MEAN"


@dataclass(frozen=True)
class Distribution:
    """A kind and its parameters; draws are never below 0."""

    kind: str
    parameters: tuple[float, ...]

    @classmethod
    def parse(cls, text: object) -> Self:
        """ValueError, in words, for what is none of the forms."""
        if isinstance(text, cls):
            return text
        kind, colon, rest = str(text).strip().partition(":")
        kind, rest = (kind, rest) if colon else ("constant", kind)
        try:
            parameters = tuple(float(part) for part in rest.split(","))
        except ValueError:
            raise ValueError(f"{text!r} is not {FORMS}") from None
        if kind not in _DRAW or len(parameters) != _DRAW[kind][0]:
            raise ValueError(f"{text!r} is not {FORMS}")
        if not all(math.isfinite(value) and value >= 0 for value in parameters):
            raise ValueError(f"{text!r} has a negative or infinite number")
        if kind == "uniform" and parameters[0] > parameters[1]:
            raise ValueError(f"{text!r} ends before it begins")
        return cls(kind, parameters)

    def __str__(self) -> str:
        numbers = ",".join(f"{value:g}" for value in self.parameters)
        return numbers if self.kind == "constant" else f"{self.kind}:{numbers}"

    def draw(self, rng: random.Random) -> float:
        """One number, 0 or above."""
        return max(0.0, _DRAW[self.kind][1](rng, self.parameters))

    def tokens(self, rng: random.Random) -> int:
        """One whole number, 1 or above."""
        return max(1, round(self.draw(rng)))
