"""Milliseconds per proposal of each sampler beside a bare Optuna study that does the same (run as a program).

OMP_NUM_THREADS=1 python tests/bench/samplers.py [TRIALS] [SAMPLER ...]
"""

import statistics
import sys
import time
import warnings
from pathlib import Path

import optuna

sys.path.insert(0, str(Path(__file__).parents[2]))

from autopeft.domain.space import FloatDomain, IntDomain, Parameter
from autopeft.search import SAMPLERS, make_sampler
from autopeft.search.encoding import suggest
from tests.contract.sampler_contract import OBJECTIVES, ToySpace, choice, scores, told

PLAIN = {
    "tpe": lambda: optuna.samplers.TPESampler(seed=0, multivariate=True, group=True),
    "gp": lambda: optuna.samplers.GPSampler(seed=0),
    "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=0, population_size=20),
    "random": lambda: optuna.samplers.RandomSampler(seed=0),
}


def space() -> ToySpace:
    """Ten parameters of every kind."""
    return ToySpace(
        choice("variant", "lora", "rslora", "dora", "pissa"),
        choice("modules", "qv", "attention", "ffn", "all"),
        choice("rank", 1, 2, 4, 8, 16, 32, 64, ordered=True),
        choice("dropout", 0.0, 0.05, 0.1, ordered=True),
        choice("prune", False, True),
        Parameter(name="first", domain=IntDomain(low=0, high=11)),
        Parameter(name="count", domain=IntDomain(low=1, high=12)),
        Parameter(name="length", domain=IntDomain(low=1, high=128, log=True)),
        Parameter(name="alpha", domain=FloatDomain(low=0.25, high=8.0, log=True)),
        Parameter(name="rate", domain=FloatDomain(low=1e-4, high=1e-2, log=True)),
    )


def ours(name: str, trials: int) -> list[float]:
    """Seconds of each `ask`."""
    sampler, taken = make_sampler(name, space(), OBJECTIVES, 0), []
    for number in range(trials):
        start = time.perf_counter()
        proposal = sampler.ask(number)
        taken.append(time.perf_counter() - start)
        sampler.tell(told(number, proposal))
    return taken


def plain(name: str, trials: int) -> list[float]:
    """Seconds of each question to a study that lives on, without a guard against duplicates and without replay."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=PLAIN[name]())
    taken = []
    for _ in range(trials):
        start = time.perf_counter()
        trial = study.ask()
        values = suggest(trial, space().parameters)
        taken.append(time.perf_counter() - start)
        study.tell(trial, scores(values))
    return taken


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    names = sys.argv[2:] or [name for name in SAMPLERS if name != "gp"]
    warnings.simplefilter("ignore")
    print(f"{trials} trials, 10 parameters, 2 objectives; milliseconds per proposal, median")
    print(f"{'sampler':10}{'first half':>12}{'last half':>12}{'plain Optuna':>14}{'ratio':>8}")
    for name in names:
        mine, other = ours(name, trials), plain(name, trials)
        half = trials // 2
        medians = [1000 * statistics.median(part) for part in (mine[:half], mine[half:], mine, other)]
        print(f"{name:10}{medians[0]:12.1f}{medians[1]:12.1f}{medians[3]:14.1f}{medians[2] / medians[3]:8.2f}")


if __name__ == "__main__":
    main()
