"""Samplers. The only room that imports optuna."""

import optuna

from autopeft.search.importances import importance
from autopeft.search.samplers import SAMPLERS, make_sampler

optuna.logging.set_verbosity(optuna.logging.ERROR)

__all__ = ["SAMPLERS", "importance", "make_sampler"]
