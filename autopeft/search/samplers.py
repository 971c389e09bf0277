"""The samplers by name, and how each is built from Optuna's."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from math import comb

import optuna
from optuna.samplers import BaseSampler

from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.objective import Objective
from autopeft.domain.ports import KnownObjectives, Sampler
from autopeft.domain.space import Space
from autopeft.domain.start import Start
from autopeft.search.asking import HistorySampler
from autopeft.search.evolution import EvolutionSampler
from autopeft.search.extras import INSTALL, SAAS, missing
from autopeft.search.front.earlier import EarlierRuns
from autopeft.search.front.fits import Fits
from autopeft.search.front.sampler import FrontSampler
from autopeft.search.front.views import SpaceView, View
from autopeft.search.paper import PaperSampler
from autopeft.search.paper.models import Map
from autopeft.search.paper.sampler import Effort
from autopeft.search.starting import StartedSampler

SAMPLERS = {
    "front": "Gaussian process on what training must show, everything else is known; least training, takes any space.",
    "tpe": "Tree-structured Parzen estimators: learns which values good trials share; fast, takes any space.",
    "gp": "Gaussian processes: fewest trials on small numeric spaces; seconds per proposal.",
    "nsga2": "Evolution (NSGA-II): crosses and mutates the best trials; needs some hundred of them.",
    "nsga3": "Evolution (NSGA-III): the same, spread along given directions; for three objectives and more.",
    "evolution": "Regularised evolution: the best of a few is changed a little, the oldest dies.",
    "autopeft": "The AutoPEFT paper's: sparse Gaussian processes, batches of four; takes seconds; extra botorch.",
    "autopeft-map": "The same with the most likely Gaussian processes, some times quicker; extra botorch.",
    "random": "Independent draws: the baseline that others must beat.",
}
"""Every sampler with one line for a person who chooses."""

PAPER = {"autopeft": Effort(), "autopeft-map": Effort(fit=Map())}
"""The paper's sampler by name, and what it does for a proposal."""
_TRIES = 6
_GP_TRIES = 2
"""A Gaussian process takes seconds to answer, and answers alike."""
_STARTUP = 6
"""Random trials before a model is used. Optuna's 10 would leave a budget of 12 nearly all at random draws."""
_POPULATION = 20
"""Trials per generation of `nsga2` and `nsga3`. Optuna's 50 would leave most budgets of a fine-tuning search at random
draws."""


def make_sampler(
    name: str,
    space: Space,
    objectives: Sequence[Objective],
    seed: int,
    startup_trials: int | None = None,
    known: KnownObjectives | None = None,
    view: View | None = None,
    effort: Effort | None = None,
    start: Start | None = None,
) -> Sampler:
    """The sampler of this name.

    `startup_trials` trials come before the model is used, random ones but for `front`, which fills the space (for
    evolution they are the size of a generation); `None` is 6, for `front` 4, for `nsga2`, `nsga3` and `evolution` 20.
    `known` tells what need not be learned by training. `view` takes the place of the space as `front`, `evolution` and
    `autopeft` see it, `effort` that of what `autopeft` does for a proposal. `start` is what the search begins with: its
    points come before the sampler's, and `front` expects what its earlier runs saw.

    Raises:
        UserError: where there is no such sampler, or it cannot work on this space or in this installation.
    """
    if name not in SAMPLERS:
        raise UserError(unknown("sampler", name, SAMPLERS))
    if name == "gp":
        _check_gp(space)
    if name in PAPER:
        _check_paper()
        # Everything is a black box to the paper's search.
        view = view or SpaceView(space, objectives, None, seed)
    elif view is None and name in ("front", "evolution"):
        view = SpaceView(space, objectives, known, seed)
    earlier = (
        EarlierRuns(view, space.parameters, objectives, start.earlier)
        if start and start.earlier and view is not None and name == "front"
        else None
    )

    fits = Fits()

    def build(draw_seed: int) -> BaseSampler:
        match name:
            case "front":
                # The draws of a question belong to its number, not to the attempt: it is asked once.
                return FrontSampler(view, seed=draw_seed, startup=startup_trials, fits=fits, earlier=earlier)
            case "evolution":
                assert view is not None
                return EvolutionSampler(view, draw_seed, startup_trials)
            case "autopeft" | "autopeft-map":
                return PaperSampler(view, seed=draw_seed, startup=startup_trials, effort=effort or PAPER[name])
            case "tpe":
                return _tpe(draw_seed, startup_trials)
            case "gp":
                return _gp(draw_seed, startup_trials)
            case "nsga2":
                return _nsga2(draw_seed, startup_trials)
            case "nsga3":
                return _nsga3(draw_seed, startup_trials, len(objectives))
        return optuna.samplers.RandomSampler(seed=draw_seed)

    sampler = HistorySampler(
        build,
        space,
        objectives,
        seed,
        tries={"front": 1, "gp": _GP_TRIES}.get(name, 1 if name in PAPER else _TRIES),
        keeps_state=name in ("nsga2", "nsga3", *PAPER),
        avoids_infeasible=name != "random",
    )
    return StartedSampler(sampler, start) if start and start.points else sampler


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


def _nsga3(seed: int, startup_trials: int | None, objectives: int) -> BaseSampler:
    population = max(2, startup_trials or _POPULATION)
    # As many directions as trials in a generation, as in the paper's table 1.
    divisions = next(many for many in range(1, population + 1) if comb(objectives + many - 1, many) >= population)
    return optuna.samplers.NSGAIIISampler(seed=seed, population_size=population, dividing_parameter=divisions)


def _check_paper() -> None:
    absent = missing(SAAS)
    if absent:
        raise UserError(
            Problem(
                "sampler",
                f"autopeft needs {', '.join(absent)}, not installed here",
                ", ".join(name for name in SAMPLERS if name not in PAPER),
                f"Run {INSTALL}, or use front.",
            )
        )


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
