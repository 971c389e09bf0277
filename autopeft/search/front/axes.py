"""How objectives are looked at: as losses, on the scale on which differences count, with what is believed of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.search.front.surrogate import Prior

Array = NDArray[np.float64]

QUALITY = Prior()
COST = Prior(length=1.0, noise=1e-4, noise_sd=1.5, linear=1.0)
"""Of bytes, counts and seconds that must be learned: nearly linear in the inputs on their logarithmic scale, nearly
without noise. It makes the surrogate a Bayesian linear regression with a Matérn correction."""


@dataclass(frozen=True)
class Axes:
    """How objectives are looked at: as losses, the first black box first."""

    order: tuple[int, ...]
    """Indices of objectives."""
    signs: tuple[float, ...]
    """Per objective, 1 to minimise, -1 to maximise."""
    logarithmic: tuple[bool, ...]
    """Per objective, whether ratios count rather than differences."""

    def losses(self, index: int, values: Sequence[float] | Array) -> Array:
        """Values of one objective as losses."""
        array = np.asarray(values, dtype=float)
        return self.signs[index] * (np.log(np.maximum(array, 1e-300)) if self.logarithmic[index] else array)
