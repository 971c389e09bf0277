"""The packages that only some samplers need: whether they are installed, and using them quietly and repeatably."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

BOTORCH = ("botorch", "gpytorch")
"""What `front` needs where two objectives or more are black boxes."""
SAAS = (*BOTORCH, "jax", "numpyro")
"""What `autopeft` needs: BoTorch runs the No-U-Turn sampler by JAX."""
INSTALL = "python -m pip install 'autopeft[botorch]'"


def missing(packages: Sequence[str]) -> list[str]:
    """Those that are not installed; nothing is imported."""
    return [package for package in packages if find_spec(package) is None]


@contextmanager
def calm(seed: int) -> Iterator[None]:
    """BoTorch on one thread, without its warnings, with these draws; torch is then as it was.

    The cores are the workers', and on cores that are busy several threads take many times as long as one.
    """
    import torch
    from botorch.utils.sampling import manual_seed

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with warnings.catch_warnings(), manual_seed(seed):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
