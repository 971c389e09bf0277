"""The `autopeft` sampler: the search of the AutoPEFT paper. BoTorch is imported where it is used, never before."""

from autopeft.search.paper.sampler import PaperSampler

__all__ = ["PaperSampler"]
