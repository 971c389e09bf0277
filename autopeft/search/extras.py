"""What is installed of the packages that only some samplers need."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

BOTORCH = ("botorch", "gpytorch")
"""What `front` needs where two objectives or more are black boxes."""
SAAS = (*BOTORCH, "jax", "numpyro")
"""What `autopeft` needs: BoTorch runs the No-U-Turn sampler by JAX."""
INSTALL = "python -m pip install 'autopeft[botorch]'"


def missing(packages: Sequence[str]) -> list[str]:
    """Those that are not installed; nothing is imported."""
    return [package for package in packages if find_spec(package) is None]
