"""The samplers by name, and how each is built from Optuna's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import optuna
from optuna.samplers import BaseSampler

from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.objective import Objective
from autopeft.domain.ports import KnownObjectives, Sampler
from autopeft.domain.space import Space
from autopeft.search.asking import HistorySampler
from autopeft.search.front.sampler import FrontSampler
from autopeft.search.front.views import SpaceView

Build = Callable[[int], BaseSampler]
"""An Optuna sampler for one question, from the seed of that question."""

SAMPLERS = {
    "front": "Gaussian process on quality alone, the rest is known; fewest trials, a fraction of a second per proposal.",
    "tpe": "Tree-structured Parzen estimators: learns which values good trials share; fast, takes any space.",
    "gp": "Gaussian processes: fewest trials on small numeric spaces; seconds per proposal.",
    "nsga2": "Evolution (NSGA-II): crosses and mutates the best trials; needs some hundred of them.",
    "random": "Independent draws: the baseline that others must beat.",
}
"""Every sampler with one line for a person who chooses."""

_TRIES = 6
_GP_TRIES = 2
"""A Gaussian process takes seconds to answer, and answers alike."""
_STARTUP = 6
"""Random trials before a model is used. Optuna's 10 would leave a budget of 12 nearly all at random draws."""
_POPULATION = 20
"""Trials per generation of `nsga2`. Optuna's 50 would leave most budgets of a fine-tuning search at random draws."""


def make_sampler(
    name: str,
    space: Space,
    objectives: Sequence[Objective],
    seed: int,
    startup_trials: int | None = None,
    known: KnownObjectives | None = None,
) -> Sampler:
    """The sampler of this name.

    `startup_trials` random trials come before the model is used (`nsga2`: they are the size of a generation); `None`
    is 6, for `nsga2` 20.

    Raises:
        UserError: where there is no such sampler, or it cannot work on this space or in this installation.
    """
    if name not in SAMPLERS:
        raise UserError(unknown("sampler", name, SAMPLERS))
    if name == "gp":
        _check_gp(space)
    if name == "front":
        return _front(space, objectives, seed, startup_trials, known)
    make = {"tpe": _tpe, "gp": _gp, "nsga2": _nsga2, "random": _random}[name]
    return HistorySampler(
        lambda draw_seed: make(draw_seed, startup_trials),
        space,
        objectives,
        seed,
        tries=_GP_TRIES if name == "gp" else _TRIES,
        keeps_state=name == "nsga2",
        avoids_infeasible=name != "random",
    )


def _front(
    space: Space,
    objectives: Sequence[Objective],
    seed: int,
    startup_trials: int | None,
    known: KnownObjectives | None,
) -> Sampler:
    view = SpaceView(space, objectives, known, seed)
    return HistorySampler(
        lambda draw_seed: FrontSampler(view, seed=draw_seed, startup=startup_trials), space, objectives, seed, tries=1
    )


def _tpe(seed: int, startup_trials: int | None) -> BaseSampler:
    # Multivariate, since the parameters of a memory limit act together; grouped, since some are conditional.
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=startup_trials or _STARTUP, constant_liar=True, multivariate=True, group=True
    )


def _gp(seed: int, startup_trials: int | None) -> BaseSampler:
    return optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=startup_trials or _STARTUP, warn_independent_sampling=False
    )


def _nsga2(seed: int, startup_trials: int | None) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, startup_trials or _POPULATION))


def _random(seed: int, startup_trials: int | None) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _check_gp(space: Space) -> None:
    missing = [package for package in ("torch", "scipy") if find_spec(package) is None]
    if missing:
        raise UserError(
            Problem("sampler", f"gp needs {' and '.join(missing)}, not installed here", "", "Install it, or use tpe.")
        )
    if all(parameter.when or parameter.domain.size() == 1 for parameter in space.parameters):
        raise UserError(
            Problem(
                "sampler",
                f"gp cannot learn on the space '{space.name}': every parameter of it is conditional",
                "tpe, nsga2, random",
                "Use --sampler tpe.",
            )
        )
