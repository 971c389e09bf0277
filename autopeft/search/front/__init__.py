"""The `front` sampler: Bayesian optimisation of a front of which most objectives are known before a trial."""

from autopeft.search.front.sampler import FrontSampler

__all__ = ["FrontSampler"]
