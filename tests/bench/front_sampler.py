"""Samplers on made-up tasks: share of the best known hypervolume after so many trials (run as a program).

OMP_NUM_THREADS=1 python tests/bench/front_sampler.py [--seeds 10] [--spaces lora,full] [--trials 48] SAMPLER ...

`front` knows memory and the number of parameters; `front-learned` has to learn them. See `made_up_tasks.py`.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from autopeft.domain.results import ScoredTrial
from autopeft.domain.trial import Trial, TrialStatus
from autopeft.search import make_sampler
from tests.bench.made_up_tasks import OBJECTIVES, Task, share

MARKS = (12, 16, 24, 32, 48, 64, 96)
TRUTHS = 3
"""Tasks per space; seeds beyond them search the same tasks again."""


def search(name, task, seed, trials):
    """Candidates in the order they were tried, and seconds of the sampler."""
    known = task.known if name == "front" else None
    sampler = make_sampler(name.removesuffix("-learned"), task.space, OBJECTIVES, seed, known=known)
    tried, seconds = [], 0.0
    for number in range(trials):
        start = time.perf_counter()
        proposal = sampler.ask(number)
        seconds += time.perf_counter() - start
        tried.append(proposal.candidate)
        trial = Trial(
            number=number,
            candidate=proposal.candidate,
            parameters=proposal.parameters,
            seed=0,
            status=TrialStatus.COMPLETE,
            sampler_state=proposal.sampler_state,
        )
        sampler.tell(ScoredTrial(trial, task.observed(proposal.candidate, seed)))
    return tried, seconds


def main():
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("samplers", nargs="*", default=["front", "front-learned", "tpe", "nsga2", "random"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--spaces", default="lora,full,autopeft")
    asked = parser.parse_args()
    marks = [mark for mark in MARKS if mark <= asked.trials]
    for space in asked.spaces.split(","):
        tasks = [Task(space, truth, depth=12 if space == "autopeft" else 6) for truth in range(TRUTHS)]
        print(f"\n{space}: mean share of hypervolume (worst of {asked.seeds} seeds) after so many trials")
        print(f"{'sampler':15}" + "".join(f"{mark:>15}" for mark in marks) + f"{'s/proposal':>12}", flush=True)
        for name in asked.samplers:
            shares, seconds = [], 0.0
            for seed in range(asked.first, asked.first + asked.seeds):
                task = tasks[seed % TRUTHS]
                tried, taken = search(name, task, seed, asked.trials)
                shares.append([share(task, tried[:mark]) for mark in marks])
                seconds += taken
            table = np.array(shares)
            cells = "".join(
                f"{mean:8.3f} ({low:.2f})" for mean, low in zip(table.mean(axis=0), table.min(axis=0), strict=True)
            )
            print(f"{name:15}{cells}{seconds / asked.seeds / asked.trials:12.3f}", flush=True)


if __name__ == "__main__":
    main()
